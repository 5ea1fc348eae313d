# Every target does its whole set-up: on a machine with Python 3.11+ and make,
# `make demo` or `make test` is all it takes.

PYTHON ?= python3
BIN := .venv/bin
MEMBERS := backends/duckdb backends/filesystem backends/hf plugins/gistnet plugins/reference
PACKAGES := megacontext_sdk megacontext_duckdb megacontext_filesystem megacontext_gistnet megacontext_hf \
	megacontext_reference

.PHONY: demo test check format docs bench clean

demo: .venv/.ready
	$(BIN)/megacontext demo

test: .venv/.ready
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES:%=-p %)
	$(BIN)/mypy tests/typing
	$(BIN)/lint-imports
	$(BIN)/zensical build --strict --clean

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.ready
	$(BIN)/zensical build --strict --clean

# A look only: make bench BENCH='--quick --only recall_200k'
bench: .venv/.ready
	$(BIN)/python -m tests.benchmarks $(BENCH)

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# One pip command, because the resolver must see core and all members together.
.venv/.ready: pyproject.toml constraints.txt $(MEMBERS:%=%/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]' $(MEMBERS:%=-e %)
	touch $@
