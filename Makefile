# Set-up, demonstration and tests; everything is installed into .venv.
#   make demo    train, sample, a table of memory against nn.GRU, the same small text learnt at fixed and at tuned rates,
#                and pages that show the runs
#   make test    ruff, mypy and pytest, in a process for each processor; of large grids cases that hold every pair
#   make test-all   that, and the slow tests and the rest of the grids
#   make docs    the documentation site, in site
#   make wheel   a wheel for this platform with the compiled kernel, in dist
#   make gpu-check   on a machine with an NVIDIA GPU: bits, repeats, memory and times of the kernel in Triton
#   make sanitize   the kernel's tests with its memory and its arithmetic watched
# PYTHON=... names another interpreter, of version 3.11 or later.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/ready
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

# a text so small that it can be learnt by heart, which the tuned rates prevent
SMALL := --unit word --words 50000 --max-words 5000 --embedding 200 --hidden 200 --batch 16 --length 32 --steps 800 \
	--valid-every 100 --stn.warmup 100

SUITE := $(BIN)/pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal

WATCHED := -fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1 -DREVTUNE_SANITIZED
WATCHED_TESTS := tests/reversible/kernel tests/reversible/layers/test_resets.py tests/reversible/streams/test_encode.py
WATCHERS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)

# Bytecode is kept: the tests start a hundred processes. Most of what is installed is never imported, so that nothing is
# compiled before it is.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all docs wheel gpu-check sanitize clean

demo: $(READY)
	@echo "Training takes two to five minutes; a bar tells how many are left. The rest takes four more."
	$(BIN)/revtune train --out $(DEMO)
	$(BIN)/revtune generate $(DEMO) --prompt 'def '
	$(BIN)/revtune bench memory --quick
	$(BIN)/revtune report $(DEMO) --measure
	@echo; echo "Now 50,000 words, so few that a net learns them by heart: at rates that stay, then at rates that tune themselves."
	$(BIN)/revtune train stdlib $(SMALL) --tune off --out $(DEMO)-fixed
	$(BIN)/revtune train stdlib $(SMALL) --tune stn --out $(DEMO)-tuned
	$(BIN)/revtune report $(DEMO)-fixed $(DEMO)-tuned --out $(DEMO)-tuned/report.html

test: $(READY)
	@$(BIN)/python -c 'from revtune.reversible.kernel import backend; backend.find()' & \
		$(BIN)/ruff check && $(BIN)/mypy; code=$$?; wait; exit $$code  # the kernel compiles meanwhile
	$(SUITE) -m 'not slow'

test-all: test
	@command -v chromium >/dev/null || echo "chromium is missing: reports were not opened in a browser; apt-get install chromium"
	@$(BIN)/python -c 'import triton' 2>/dev/null || \
		echo "triton is missing: the kernel for GPUs was not tested; $(BIN)/pip install -c constraints.txt -e '.[gpu]'"
	$(SUITE) -m slow

docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet
	@echo "The site: $(CURDIR)/site/index.html"

wheel: $(READY)
	rm -rf build/wheel build/kernel
	unset REVTUNE_CXXFLAGS; $(BIN)/python -c \
		'from pathlib import Path; from revtune.reversible.kernel import backend; backend.ship(Path("build/kernel"))' && \
		REVTUNE_LIBRARY=build/kernel $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

gpu-check: $(READY)
	$(BIN)/python -m benchmarks.gpu_check

sanitize: $(READY)
	REVTUNE_BACKEND=native REVTUNE_CXXFLAGS='$(WATCHED)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD='$(WATCHERS)' $(BIN)/pytest -q $(WATCHED_TESTS)

$(READY): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "revtune needs Python 3.11 or later; make PYTHON=... names one" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv || { echo "Python's venv module is missing or broken" >&2; exit 1; }
	@echo "Setting up .venv takes one to three minutes, where torch has not to come from far"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
