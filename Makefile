# make test        lint, types and tests
# make quickstart  train a small network on digits, in about a minute
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test quickstart
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/basedpyright -p tests
	$(BIN)/pytest

quickstart: .venv/installed
	$(BIN)/python train.py fit -c configs/experiment/quickstart.yaml

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "supple needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	@touch $@
