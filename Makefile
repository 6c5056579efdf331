# make demo: install and run the main job.   make test: install and run the tests.   make faults: kill it.
# make explore: look for examples that break an invariant.   make docs: build the documentation in docs/_build/html.
# make gpu-check: install, test, scan and train on a GPU.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test faults explore lint docs gpu-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/galscan demo --out demo-run

# Side by side, a file of tests in one process; as they are collected, which is the long ones in their folders first.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# The whole of it, slow ones included: a quarter of an hour.
faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/faults -m "slow or not slow"

# Properties on examples that nobody has seen: `make test` takes the same ones every time.
explore: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n auto --dist loadfile --hypothesis-profile explore -m hypothesis

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tutorials are executed once, and again when they change; warnings are errors.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# In a virtual environment of its own, in under eight minutes; WHEELS=DIR installs from a folder of wheels alone, and
# OPTIONS are those of tests/gpu_check.py. Writes gpu-check.json.
gpu-check:
	$(PYTHON) tests/gpu_check.py $(if $(WHEELS),--wheels $(WHEELS)) $(OPTIONS)

clean:
	rm -rf $(VENV) demo-run build docs/_build ./*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Editable, so that what runs is always what lies here; with the releases that are tested together; a stamp, so that only
# changed requirements install again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]"
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "galscan needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
