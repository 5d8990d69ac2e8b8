# make demo, make test and make lab set up everything they need, on any machine with Python 3.11 or newer.

PYTHON ?= python3
# Another package index to find torch in, such as PyTorch's for the CPU: make demo TORCH_INDEX=<address>
TORCH_INDEX ?=
# A folder of wheels, made by make wheelhouse, to install from without internet: make setup WHEELHOUSE=wheelhouse
WHEELHOUSE ?=
# Where make student writes, what make grade reads and where it writes, and what keeps students' code in (or none)
STUDENT ?= dist/student
SUBMITTED ?=
GRADES ?= grades
SANDBOX ?= bubblewrap
# make release SOLUTIONS=1: the notebooks with solutions, for students after the deadline
SOLUTIONS ?=
# Where make site writes
SITE ?= dist/site

# Waiting threads sleep instead of spinning: see nesskit/__init__.py, which comes too late in a notebook.
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_OPTIONS := --quiet --disable-pip-version-check -c constraints.txt
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links '$(WHEELHOUSE)')
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST := $(BIN)/python -m pytest -q
# Two processes beside each other; tests/conftest.py says what stays together.
WORKERS := -n 2 --ignore=tests/browser
NBVAL := $(PYTEST) -n 2 --dist loadfile --nbval --nbval-sanitize-with course/sanitize.cfg -p no:cacheprovider notebooks
TIMES := .pytest_cache/times

.PHONY: help setup demo test test-quick test-all test-rest test-browser test-notebooks bench lab explorer student release grade wheelhouse site dist clean

help:
	@echo "make demo      see NESS remember what fine-tuning forgets (about a minute after installation)"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make explorer  the threshold explorer as a page of its own (Voilà)"
	@echo "make test      linters, types and tests, also in a real browser if there is a Chromium"
	@echo "make test-quick  for the inner loop: no process, no browser, no notebook (under a minute)"
	@echo "make test-browser  the tests in a real browser alone"
	@echo "make test-all  also every notebook's exercises and every notebook in the browser, with other threads too"
	@echo "make bench     measure speed here and append a line to data/results/speed.jsonl; QUICK=1 takes minutes"
	@echo "make student   the notebooks for students, without solutions, in $(STUDENT)"
	@echo "make release SOLUTIONS=1  after the deadline: the notebooks with solutions, in dist/solutions"
	@echo "make grade SUBMITTED=<folder>  grade what students hand in, in a sandbox (needs bubblewrap, or SANDBOX=none)"
	@echo "make wheelhouse  every package in one folder, for a classroom without internet"
	@echo "make site      course, API, architecture and results as one static site in $(SITE)"
	@echo "make dist      what a release consists of, in dist/: a source distribution and a wheel"
	@echo "make setup     install into $(VENV) only; with WHEELHOUSE=wheelhouse without internet"
	@echo "make clean     remove $(VENV) and caches (runs/, data/, dist/ and grades/ stay)"

setup: $(INSTALLED)

# torch first and pinned: resolved later, as a dependency, pip might take a build of several gigabytes.
# nbgrader's menus in JupyterLab are off: students cannot use them, and teachers have make student and make grade.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nesskit needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": pass another one with PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) $(or $(OFFLINE),$(TORCH_FROM)) torch
	$(BIN)/python -m pip install $(PIP_OPTIONS) $(OFFLINE) -e '.[test,course,cluster,text,site]'
	$(BIN)/jupyter labextension disable --level=sys_prefix @jupyter/nbgrader
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
	$(PYTEST) $(WORKERS) --junitxml=$(TIMES)/tests.xml
	OMP_NUM_THREADS=1 $(NBVAL) --junitxml=$(TIMES)/notebooks.xml
	$(PYTEST) -rs --junitxml=$(TIMES)/browser.xml tests/browser
	@$(BIN)/python tests/slowest.py $(TIMES)/*.xml

test-quick: $(INSTALLED)
	$(BIN)/ruff check .
	$(PYTEST) $(WORKERS) -m 'not slow and not every'

test-all: test test-rest

# What make test leaves out: it takes long.
test-rest: $(INSTALLED)
	$(PYTEST) $(WORKERS) -m every
	$(PYTEST) -rs -m every tests/browser
	$(MAKE) --no-print-directory test-notebooks

# The committed outputs hold with another number of threads (one notebook at a time: two of two threads would fight for
# two cores), and with the plainest instructions that any machine has.
test-notebooks: $(INSTALLED)
	OMP_NUM_THREADS=2 $(NBVAL) -n 0
	OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default $(NBVAL)

# JupyterLab and Voilà are started, keys pressed, the mouse moved. By itself: a running browser holds the event loop.
test-browser: $(INSTALLED)
	$(PYTEST) -rs tests/browser

bench: $(INSTALLED)
	$(BIN)/python speed/bench.py $(if $(QUICK),--quick)

student: $(INSTALLED)
	$(BIN)/python -m course.release '$(STUDENT)'

release: $(INSTALLED)
	$(BIN)/python -m course.release $(if $(SOLUTIONS),--solutions,'$(STUDENT)')

grade: $(INSTALLED)
	@test -n '$(SUBMITTED)' || { echo "Error: name the folder with <student>/<level>/<notebook>.ipynb: make grade SUBMITTED=<folder>."; exit 2; }
	$(BIN)/python -m course.grade --sandbox '$(SANDBOX)' '$(SUBMITTED)' '$(GRADES)'

# For this kind of machine and Python. torch first, as above; an old build must not slip into the library's wheel.
wheelhouse: $(INSTALLED)
	rm -rf build
	$(BIN)/python -m pip wheel $(PIP_OPTIONS) -w wheelhouse $(TORCH_FROM) torch
	$(BIN)/python -m pip wheel $(PIP_OPTIONS) -w wheelhouse --find-links wheelhouse '.[test,course,cluster,text,site]' 'setuptools>=77'
	@du -sh wheelhouse

# From the notebooks as they were executed; a warning is an error.
site: $(INSTALLED)
	$(BIN)/python -m course.site '$(SITE)'

# With the tools of the environment, so that it needs no internet; the wheel is built from the source distribution.
dist: $(INSTALLED)
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
