# On a fresh machine `make demo` and `make test` are enough: the first call builds the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := quickstart

.DEFAULT_GOAL := help
.PHONY: help install demo test check slow browser clean

help: ## Show this help.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## Build the environment, if it is not there or its requirements changed.

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the quickstart and say where its report is.
	$(BIN)/dynamo-plugin quickstart --output $(DEMO) --overwrite
	@echo "The report: $(CURDIR)/$(DEMO)/report.html"

test: check ## Check the code and run the tests.
	$(BIN)/python -m pytest

check: $(STAMP) ## Lint, formatting, types and the architecture.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(STAMP) ## Run the tests that take more than about ten seconds.
	$(BIN)/python -m pytest -m slow

browser: $(STAMP) ## Run the tests that need headless Chromium.
	$(BIN)/python -m pytest -m browser

clean: ## Remove the environment and the caches; results stay.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find dynamo_plugin hooks tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
