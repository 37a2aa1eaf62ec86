# Two commands matter: `make run` and `make test`. Everything happens in .venv, which they make themselves.
PYTHON ?= python3
METHOD ?= dm
IPC ?= 1
DATASET ?= digits
# Cells of a grid at a time
WORKERS ?= 2
# More parameters of the cell, as papermill takes them: make run ARGS="-p protocol full"
ARGS ?=
OUT ?= runs/$(if $(filter dm-1-digits,$(METHOD)-$(IPC)-$(DATASET)),quickstart,$(DATASET)-$(METHOD)-ipc$(IPC))

VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check
METADATA := settings.ini setup.py pyproject.toml
# Commands of the venv first, also for what the commands call; quoted, as the checkout's path may hold blanks
IN_VENV := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
STEP := $(IN_VENV) python tools/check_tree.py
STARTED := $(shell date +%s)
TOOK = @echo "== $@: ok, $$(( $$(date +%s) - $(STARTED) )) s in all"

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run grid-demo figures test test-slow docs export lab

help:
	@echo "make run         one cell of the benchmark: distil, train, attack, show (METHOD=dm IPC=1 DATASET=digits OUT=... ARGS='-p NAME VALUE')"
	@echo "make grid-demo   a whole grid on the bundled digits: six distillers, IPC 1 and 5, into runs/ (WORKERS=2)"
	@echo "make figures     every table and figure of the paper with our rows beside it, into paper_figures (ARGS='-p store FOLDER')"
	@echo "make test        all checks: format and lint, style, notebooks and package agree, documentation, notebook tests, pytest"
	@echo "make test-slow   the checks that take longer, and those for a GPU where there is one"
	@echo "make docs        the documentation site, in _docs"
	@echo "make export      notebooks -> package, README and sidebar; notebooks formatted and cleaned"
	@echo "make lab         JupyterLab on the notebooks"

# ---- installation: a stamp is written only after success, so an interrupted one is taken up again

$(VENV)/.made:
	@command -v "$(PYTHON)" >/dev/null || { echo "No $(PYTHON) found: install Python 3.10 or newer, or say which one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, $(PYTHON) is $$("$(PYTHON)" -V 2>&1): say which one to use: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) comes without venv: install it (Debian, Ubuntu: apt install python3-venv) and call make again" >&2; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(METADATA)
	@echo "Installing into $(VENV); the first time takes some minutes and about 6 GB, most of it PyTorch"
	$(PIP) -e '.[torchattacks]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made $(METADATA)
	@echo "Installing into $(VENV) with the tools for development; the first time takes some minutes and about 6 GB"
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@

# ---- the benchmark

run: $(VENV)/.installed
	@mkdir -p "$(OUT)"
	$(IN_VENV) python -m papermill nbs/run_cell.ipynb "$(OUT)/run_cell.ipynb" --cwd nbs \
		-p method "$(METHOD)" -p ipc "$(IPC)" -p dataset "$(DATASET)" -r out "$$(cd "$(OUT)" && pwd)" $(ARGS) </dev/null
	@$(IN_VENV) python -m ddrobust_nb.results.report "$(OUT)"

grid-demo: $(VENV)/.installed
	$(IN_VENV) ddrobust run demo --workers $(WORKERS) $(ARGS)
	$(TOOK)

figures: $(VENV)/.installed
	@out=$$(mktemp -d); for page in nbs/analysis/*.ipynb; do \
		$(IN_VENV) python -m papermill "$$page" "$$out/$$(basename "$$page")" --cwd nbs/analysis --log-level ERROR \
			-p figures "$(CURDIR)/paper_figures" $(ARGS) </dev/null || exit 1; done; rm -r "$$out"
	$(TOOK)

# ---- the checks

test: $(VENV)/.installed-dev
	@$(STEP) "format and lint" "ruff format --check" "ruff check"
	@$(STEP) "export and clean" "python tools/export.py" nbdev_clean
	@$(STEP) "how the pages read" "python tools/measure_style.py --check"
	@$(STEP) "README is index.ipynb" "python tools/make_readme.py --check"
	@$(STEP) "documentation" "python tools/build_docs.py"
	@OMP_NUM_THREADS=1 $(STEP) "notebook tests" "python tools/run_notebooks.py"
	@$(STEP) "pytest" "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu' --durations 5"
	$(TOOK)

test-slow: $(VENV)/.installed-dev
	@flags="slow" marks="slow and not gpu"; \
	if $(VENV)/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then flags="slow gpu" marks="slow or gpu"; fi; \
	$(STEP) "slow notebook tests" "python tools/run_notebooks.py --workers 1 --flags '$$flags'" && \
	$(STEP) "slow pytest" "python -m pytest --durations 10 -m '$$marks'"
	$(TOOK)

docs: $(VENV)/.installed-dev
	@$(IN_VENV) python tools/build_docs.py

# The package is replaced only when every module of the new one can be imported (see tools/export.py)
export: $(VENV)/.installed-dev
	@$(IN_VENV) ruff format --quiet
	@$(IN_VENV) python tools/export.py
	@$(IN_VENV) nbdev_clean
	@$(IN_VENV) python tools/build_docs.py yml
	@$(IN_VENV) python tools/make_readme.py

lab: $(VENV)/.installed-dev
	@$(IN_VENV) jupyter lab nbs
