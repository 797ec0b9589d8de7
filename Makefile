# `make demo` and `make test` are all that a new machine needs: Python 3.11 or newer, make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all lint types lock clean

install: $(VENV)/installed

# uv installs in seconds; pip does the same in a minute where uv finds no packages (a mirror that only pip knows).
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tessera needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]' || \
	  $(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/tessera train --config=configs/gpt_demo.py

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

# Pins for every supported Python, without addresses.
lock: install
	$(BIN)/uv pip compile -q --universal pyproject.toml --extra dev --extra notebooks --extra hub --extra cluster --extra gpu --extra tpu \
	  --python-version 3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
