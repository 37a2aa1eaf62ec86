#!/usr/bin/env bash
# papermill 2.7.0, ipykernel 7.1.0: an object that fails while it is *displayed* does not stop the notebook, and fails it all the same.
#
# A cell ends in an object whose `_repr_html_` raises. Jupyter shows the traceback, takes the text form, answers
# "ok", and runs the cells below. One would swear that papermill does the same, or stops there. It does neither:
# every later cell runs, and when all have run, papermill raises PapermillExecutionError for the first of them.
# So hours of finished work behind such a cell are reported as failed, and a runner that repeats failed
# notebooks repeats it for ever. Cells below the error carry their outputs and "completed" in the saved notebook.
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check papermill==2.7.0 ipykernel==7.1.0 nbformat
cd "$folder"
export IPYTHONDIR="$folder/ipython" JUPYTER_DATA_DIR="$folder/jupyter"
"$folder/venv/bin/python" -m ipykernel install --prefix "$folder/venv" --name python3 >/dev/null 2>&1
"$folder/venv/bin/python" - <<'PYTHON'
import nbformat
import papermill
from nbformat.v4 import new_code_cell, new_notebook

cells = [
    "class Table:\n    def _repr_html_(self): raise ValueError('cannot be drawn')\nTable()",
    "from pathlib import Path\nPath('after.txt').write_text('the cell below the error ran')\n'last'",
]
notebook = new_notebook(cells=[new_code_cell(text) for text in cells])
notebook.metadata["kernelspec"] = dict(name="python3", display_name="python3", language="python")
nbformat.write(notebook, "in.ipynb")

raised = None
try: papermill.execute_notebook("in.ipynb", "out.ipynb", progress_bar=False, log_output=False)
except papermill.exceptions.PapermillExecutionError as error: raised = error

done = nbformat.read("out.ipynb", 4).cells
last = done[-1]
print("papermill", papermill.__version__)
print("raised:", type(raised).__name__, raised and raised.ename, raised and raised.evalue)
print("later cell ran:", last.execution_count, last.metadata.papermill.status, last.outputs[-1].data["text/plain"])

assert raised is not None and (raised.ename, raised.evalue) == ("ValueError", "cannot be drawn")
assert open("after.txt").read() == "the cell below the error ran"
assert last.metadata.papermill.status == "completed" and last.outputs[-1].data["text/plain"] == "'last'"
print("as seen: the notebook ran to its end, and papermill calls it failed")
PYTHON
