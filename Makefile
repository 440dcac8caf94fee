# Needs Python 3.11 or newer, make and git. Every target makes .venv first if need be.
.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types imports docstrings bench clean

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OUT ?= runs/demo
PIP_FLAGS ?= --quiet --disable-pip-version-check

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## make .venv and install the pinned packages

$(STAMP): pyproject.toml hatch_build.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)" >&2
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev,report,serve,browser]'
	@touch $@

demo: $(STAMP) ## the main job on the embedded emoji world; ends with the path of report.html (OUT=runs/demo)
	$(BIN)/dina-lrm demo --out $(OUT)

test: $(STAMP) ## the whole test suite
	$(BIN)/python -m pytest

check: lint types imports docstrings test ## lint, types, import contracts, docstrings, tests

lint: $(STAMP) ## ruff: rules, docstrings, layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict, on the package
	$(BIN)/mypy

imports: $(STAMP) ## the floors of ARCHITECTURE.md, held by import-linter
	$(BIN)/lint-imports

docstrings: $(STAMP) ## docstrings name what is there (ruff holds their form)
	$(BIN)/python -m pytest tests/house/test_docstrings.py

bench: $(STAMP) ## every benchmark at its quick size, tables last
	$(BIN)/python -m benchmarks

clean: ## remove .venv, caches and runs of the demo
	rm -rf $(VENV) runs/demo .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build dist
