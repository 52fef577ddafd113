# Everything runs in a virtual environment in .venv, set up on first use with the versions in constraints.txt. What only
# tests and lint need is added to it on their first use.
# test-lowest has its own, with the lowest versions that pyproject.toml allows.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TOOLS := $(VENV)/.tools
LOWEST ?= .venv-lowest
# Processes that share the tests. Each takes one core and 2 GB.
JOBS ?= 2
PYTEST := -m pytest -q -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help lbr-chem lbr-chem-full documents test test-all test-lowest bench lint clean .venv

help:  ## Print this list
	@echo "Targets:"
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## */  make \1|/' | \
		while IFS='|' read -r target text; do printf '%-22s %s\n' "  $$target" "$$text"; done

.venv: $(STAMP)  ## Set up the virtual environment (PYTHON=... picks the interpreter, 3.11 or newer)

$(STAMP): EXTRAS := chem,eval,documents
$(TOOLS): EXTRAS := chem,eval,documents,dev
$(STAMP) $(TOOLS): pyproject.toml constraints.txt
	$(set_up)

$(LOWEST)/.ready: EXTRAS := chem,eval,documents,qlora,dev
$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(set_up)

# --no-compile: Python compiles what it imports; all 17,000 modules would take more than a minute.
define set_up
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "lbr-st needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --no-compile -c $(filter constraints%,$^) -e ".[$(EXTRAS)]"
	@touch $(@D)/.ready $@
endef

lbr-chem: $(STAMP)  ## Train and release a small chemistry model into lbr-chem-quick/ (minutes on a CPU)
	$(BIN)/python recipes/chem.py --quick --overwrite

lbr-chem-full: $(STAMP)  ## The same with the full recipe, into lbr-chem-full/ (long on a CPU)
	$(BIN)/python recipes/chem.py --overwrite --output lbr-chem-full

documents: $(STAMP)  ## Train a search on documents alone, networkx's docstrings, into lbr-graphs/ (an hour on a CPU)
	$(BIN)/python recipes/documents.py --overwrite --output lbr-graphs

test: $(TOOLS)  ## Run the tests that take minutes together, offline
	HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST) -m "not slow"

test-all: $(TOOLS)  ## Run all tests, the slow ones included
	HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST)

test-lowest: $(LOWEST)/.ready  ## Run all tests on the lowest versions allowed (6 GB, put in LOWEST=...)
	HF_HUB_OFFLINE=1 $(LOWEST)/bin/python $(PYTEST)

bench: $(STAMP)  ## Measure the benchmark's rows that need no GPU (an hour on two idle cores)
	$(BIN)/python benchmarks/run.py

lint: $(TOOLS)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## Remove the virtual environments, caches and build leftovers; trained models stay
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find lbr_st recipes eval tests -name __pycache__ -type d -prune -exec rm -rf {} +
