"""Write README.md from nbs/index.ipynb: python tools/make_readme.py [--check]

Markdown stays, code becomes fenced code, of the outputs only markdown and HTML tables are kept. Links are moved from nbs/ to the root.
With --check nothing is written, and the exit code is 1 when README.md is not what the notebook says.
"""

import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"


def joined(text):
    return "".join(text) if isinstance(text, list) else text


def from_root(target):
    "A link of a page in nbs/ as the root of the repository needs it"
    if re.match(r"[a-z][a-z0-9+.-]*:|#|/", target, flags=re.I):
        return target
    return posixpath.normpath(posixpath.join("nbs", target))


def moved(text):
    "Markdown with its links moved, except in fenced code; the site's `:::` divs are dropped"
    parts = re.split(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", text, flags=re.M | re.S)
    for i in range(0, len(parts), 2):
        part = re.sub(r"^:::.*\n?", "", parts[i], flags=re.M)
        part = re.sub(r"(\]\()([^)\s]+)", lambda m: m[1] + from_root(m[2]), part)
        parts[i] = re.sub(r"((?:href|src)=\")([^\"]+)", lambda m: m[1] + from_root(m[2]), part)
    return "".join(parts).strip()


def code_block(cell):
    "A code cell as fenced code, without its directives; nothing when the page hides it"
    lines = joined(cell["source"]).strip().splitlines()
    directives = " ".join(line for line in lines if line.startswith("#|"))
    code = "\n".join(line for line in lines if not line.startswith("#|"))
    if re.search(r"\b(hide|hide_input|echo: *false|default_exp|include: *false)\b", directives) or not code:
        return ""
    return f"```python\n{code}\n```"


def kept_outputs(cell):
    "Those outputs of a code cell that read well on a repository's front page"
    if re.match(r"#\| *(hide|include: *false|output: *false)\b", joined(cell["source"])):
        return []
    found = []
    for data in (output.get("data", {}) for output in cell.get("outputs", [])):
        html = joined(data.get("text/html", ""))
        if "text/markdown" in data:
            found.append(moved(joined(data["text/markdown"])))
        elif "<table" in html:
            found.append(re.sub(r"<style.*?</style>\s*", "", html, flags=re.S).strip())
    return found


def readme():
    blocks = []
    for cell in json.loads(INDEX.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            blocks.append(moved(joined(cell["source"])))
        if cell["cell_type"] == "code":
            blocks += [code_block(cell), *kept_outputs(cell)]
    return (
        "<!-- Written from nbs/index.ipynb by tools/make_readme.py -->\n\n"
        + "\n\n".join(filter(None, blocks))
        + "\n"
    )


def main():
    text = readme()
    same = README.exists() and README.read_text(encoding="utf-8") == text
    if "--check" in sys.argv and not same:
        sys.exit("README.md is not what nbs/index.ipynb says: run `make export`")
    if not same:
        README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
