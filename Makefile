# make test         lint, types and tests
# make quickstart   train a small network on digits, in about a minute
# make test-full    `make test`, and the slow tests
# make test-lowest  the tests at the lowest versions of pyproject.toml; needs Python 3.11
# make docs         the site, in site/
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
# one thread each: processes that share the cores wait for each other's threads
PYTEST := -m pytest --numprocesses auto --maxprocesses 4
test test-lowest: export OMP_NUM_THREADS = 1

.PHONY: test test-full test-lowest docs quickstart
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/basedpyright -p tests
	$(BIN)/python $(PYTEST)

test-full: test
	$(BIN)/python -m pytest -m slow

test-lowest: .venv-lowest/installed
	$(LOWEST)/python $(PYTEST)

docs: .venv/installed-docs
	$(BIN)/python -m mkdocs build --strict

quickstart: .venv/installed
	$(BIN)/python train.py fit -c configs/experiment/quickstart.yaml

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "supple needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo 'installing torch and the other packages into .venv; with CUDA about 2.7 GB, some minutes'
	$(BIN)/python -m pip install --editable '.[train,dev]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# pip takes the newest versions; uv can take the lowest
.venv-lowest/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "the lowest versions are those of Python 3.11; name it: make test-lowest PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST)/python -m pip install --quiet uv
	$(LOWEST)/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[train,dev]'
	@touch $@
