# make demo, make test and make lab set up everything they need, on any machine with Python 3.11 or newer.

PYTHON ?= python3
# Another package index to find torch in, such as PyTorch's for the CPU: make demo TORCH_INDEX=<address>
TORCH_INDEX ?=

# Waiting threads sleep instead of spinning: see nesskit/__init__.py, which comes too late in a notebook.
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup demo test test-browser lab explorer clean

help:
	@echo "make demo      see NESS remember what fine-tuning forgets (about a minute after installation)"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make explorer  the threshold explorer as a page of its own (Voilà)"
	@echo "make test      linters, types and tests, also in a real browser if there is a Chromium"
	@echo "make test-browser  the tests in a real browser alone"
	@echo "make setup     install into $(VENV) only"
	@echo "make clean     remove $(VENV) and caches (runs/ and data/ stay)"

setup: $(INSTALLED)

# torch first and pinned: resolved later, as a dependency, pip might take a build of several gigabytes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nesskit needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": pass another one with PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,course]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m nesskit demo

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks

explorer: $(INSTALLED)
	$(BIN)/voila notebooks/explorer.ipynb

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --ignore=tests/browser
	$(MAKE) --no-print-directory test-browser

# JupyterLab and Voilà are started, keys pressed, the mouse moved. By itself: a running browser holds the event loop.
test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -rs tests/browser

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
