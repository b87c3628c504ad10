# make train   set up, then train a prefix             make train ARGS="--model gpt2"
# make test    set up for development, then test       make test ARGS="-m slow"
#
# Everything is installed in .venv, and again only when this file, pyproject.toml or constraints.txt changes.
# PYTHON chooses the Python .venv is made with; PIPFLAGS= (empty) shows all that pip says.

PYTHON   ?= python3
PIPFLAGS ?= -qq
ARGS     ?=

VENV := .venv
PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip --disable-pip-version-check install $(PIPFLAGS) -c constraints.txt
SAY  := @printf 'set-up: %s\n'

# torch's CUDA builds name the Triton they need; beside a build that names none, this one was tested.
TRITON := triton==3.9.0
PICK_TRITON := import sys; from importlib.metadata import requires; \
	named = any("triton" in r for r in requires("torch") or []); \
	print("" if named or sys.platform != "linux" else "$(TRITON)")

CHECK_PYTHON := import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); \
	ok or sys.exit("mingpt-prefix needs Python 3.11, 3.12 or 3.13; %s is %s. Name another: make PYTHON=python3.12 ..." \
	% (sys.executable, sys.version.split()[0]))

.DELETE_ON_ERROR:
.PHONY: help setup setup-dev train test lint format wheel clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

train: setup
	$(PY) train.py --mode prefix $(ARGS)

# Each worker has one core: threads of several would wait for each other. Files go out in the order
# of their names, for the longest one (the kernels) would be the last by their numbers of tests.
test: setup-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports

format: setup-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

wheel: setup
	$(PY) -m pip --disable-pip-version-check wheel $(PIPFLAGS) --no-deps -w dist .
	@ls -l dist

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(VENV)/ready
setup-dev: $(VENV)/ready-dev

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found. mingpt-prefix needs Python 3.11, 3.12 or 3.13." >&2; exit 1; }
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(SAY) "a virtual environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt Makefile | $(PY)
	$(SAY) "torch (by far the largest download: some minutes)"
	@$(PIP) torch
	$(SAY) "mingpt-prefix and what it runs with"
	@$(PIP) -e '.[plots]' $$($(PY) -c '$(PICK_TRITON)')
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(SAY) "what the tests need"
	@$(PIP) -e '.[dev]'
	@touch $@
