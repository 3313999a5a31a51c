# `make demo` and `make test` set up all that they need in .venv; nothing else is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-all test-floor lint types check docs pages picture clean help

help:
	@echo "make demo      train the embedded text-to-SQL case, explain it, write its report"
	@echo "make test      the default tests;  make test-all: the slow ones too"
	@echo "make lint types check (lint + types + test)"
	@echo "make test-floor  the callback on the oldest transformers and pandas that it bears, in .venv-floor"
	@echo "make docs      the site in site/;  make pages picture: what docs/ holds that is made from the code"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; hint: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(BIN)/python pyproject.toml requirements.lock
	$(BIN)/python -m pip install -q -c requirements.lock "$(TORCH)"
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[train,review]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[dev]"
	@touch $@

$(VENV)/.ready-docs: $(BIN)/python pyproject.toml requirements.lock
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[docs]"
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/dpo-diag demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n auto

test-all: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m "slow or not slow"

test-floor: tests/floor/requirements.txt
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install -q -r tests/floor/requirements.txt
	PYTHONPATH=. .venv-floor/bin/python -m pytest -q -p no:cacheprovider tests/floor

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

pages: $(VENV)/.ready-dev
	$(BIN)/python -m docs.make

picture: $(VENV)/.ready-dev
	$(BIN)/python -m docs.make.picture

clean:
	rm -rf $(VENV) .venv-floor build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
