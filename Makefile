# Set-up, demonstration and tests; everything is installed into .venv.
#   make demo    train, sample, and a table of memory against nn.GRU
#   make test    ruff, mypy and pytest
# PYTHON=... names another interpreter, of version 3.11 or later.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/ready
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test clean

demo: $(READY)
	$(BIN)/revtune train --out $(DEMO)
	$(BIN)/revtune generate $(DEMO) --prompt 'def '
	$(BIN)/revtune bench memory --quick

test: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -q

$(READY): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "revtune needs Python 3.11 or later; make PYTHON=... names one" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv || { echo "Python's venv module is missing or broken" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
