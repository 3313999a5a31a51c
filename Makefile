# `make demo` and `make test` set up all that they need in .venv; nothing else is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-all test-floor lint types check docs pages picture lock audit clean help

help:
	@echo "make demo      train the embedded text-to-SQL case, explain it, write its report"
	@echo "make test      the default tests;  make test-all: the slow ones too"
	@echo "make lint types check (lint + types + test)"
	@echo "make test-floor  the callback, and training and scoring, each on the oldest versions that it bears"
	@echo "make lock      write both locks anew, hashes and all;  make audit: known faults of what they hold"
	@echo "make docs      the site in site/;  make pages picture: what docs/ holds that is made from the code"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; hint: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# Every file is checked against the locks' hashes; torch's build is the machine's own (see requirements.in).
# Of thousands of modules a command imports few: Python compiles those when it first does. For the tests all are
# compiled, on every core: a warning of another package's source must not come up inside a test.
INSTALL := $(BIN)/python -m pip install -q --no-compile
LOCKED  := $(INSTALL) --no-deps --require-hashes

$(VENV)/.ready: $(BIN)/python pyproject.toml requirements.lock
	$(LOCKED) -r requirements.lock
	$(INSTALL) "$(TORCH)"
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock
	$(LOCKED) -r requirements-dev.lock
	-$(BIN)/python -W ignore -m compileall -q -j 0 $(VENV)/lib >/dev/null
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/dpo-diag demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n auto --dist loadgroup

test-all: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m "slow or not slow"

# Prompts that are packed: where an older transformers does not prove it right, responses go one by one, as they should.
FLOOR_TESTS := tests/floor tests/models tests/inference tests/records tests/frames tests/diagnosis tests/outputs \
  --ignore tests/models/packed \
  --deselect tests/inference/test_generation.py::test_training_with_and_without_is_bit_identical \
  $(addprefix tests/training/,test_exactness.py test_stored_reference.py test_sft.py test_head_probe.py \
    test_checkpoint_folders.py)

test-floor: tests/floor/requirements.txt tests/floor/requirements-train.txt
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install -q -r tests/floor/requirements.txt
	PYTHONPATH=. .venv-floor/bin/python -m pytest -q -p no:cacheprovider tests/floor
	test -x .venv-floor-train/bin/python || $(PYTHON) -m venv .venv-floor-train
	.venv-floor-train/bin/python -m pip install -q -r tests/floor/requirements-train.txt "$(TORCH)"
	PYTHONPATH=. .venv-floor-train/bin/python -m pytest -q -p no:cacheprovider -o filterwarnings=default $(FLOOR_TESTS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

pages: $(VENV)/.ready-dev
	$(BIN)/python -m docs.make

picture: $(VENV)/.ready-dev
	$(BIN)/python -m docs.make.picture

# torch is left out by an override whose marker never holds: its requirements are listed in requirements.in.
SUPPLY := .venv-supply
COMPILE = echo "torch ; python_version < '3'" | $(SUPPLY)/bin/uv pip compile -q pyproject.toml requirements.in --overrides - \
	--universal --python-version 3.11.5 --generate-hashes --no-annotate --custom-compile-command "make lock" --extra train --extra review

$(SUPPLY)/.ready:
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install -q uv pip-audit
	@touch $@

lock: $(SUPPLY)/.ready
	$(COMPILE) -o requirements.lock
	$(COMPILE) --extra dev --extra docs -c requirements.lock -o requirements-dev.lock

# The last line of what it says: where no database can be reached, the rest is a traceback.
audit: $(SUPPLY)/.ready
	@$(SUPPLY)/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock -r requirements-dev.lock \
	  2> $(SUPPLY)/audit.log && tail -n 1 $(SUPPLY)/audit.log \
	  || { echo "make audit: $$(tail -n 1 $(SUPPLY)/audit.log | cut -c 1-300)" >&2; exit 1; }

clean:
	rm -rf $(VENV) .venv-floor .venv-floor-train $(SUPPLY) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
