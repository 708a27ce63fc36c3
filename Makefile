# `make demo` and `make test` are all that a newcomer needs: each makes the virtual environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_FLAGS ?=

.PHONY: demo test test-compose lint bench recording clean help

help:
	@echo "make demo   run the whole system on this machine, with a live view (DEMO_FLAGS='--duration 60s')"
	@echo "make test   run every test"
	@echo "make test-compose   docker compose up on a Docker engine of its own (root, Debian's docker.io and mmdebstrap)"
	@echo "make lint   ruff, mypy and the import contracts"
	@echo "make bench  measure this machine, write benchmarks/results/"
	@echo "make recording  record the terminal view anew, docs/top.cast and docs/top.svg"
	@echo "make clean  remove the virtual environment and the files of runs"

# The demo needs no torch: its model is shipped.
$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plot,top,web]'
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/mdi-exit demo $(DEMO_FLAGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-compose: $(VENV)/.dev
	MDI_EXIT_TEST_COMPOSE=1 $(BIN)/python -m pytest -s tests/compose

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.demo
	$(BIN)/mdi-exit benchmark hop --out benchmarks/results
	$(BIN)/mdi-exit benchmark agent --out benchmarks/results
	$(BIN)/mdi-exit benchmark metrics --rounds 7 --out benchmarks/results

recording: $(VENV)/.dev
	$(BIN)/python docs/record_top.py

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
