# Two commands: `make book` builds the book, `make test` checks everything.
# Works with GNU make 3.81, which macOS ships.

PYTHON ?= python3
VENV ?= .venv
BIN := $(if $(filter Windows_NT,$(OS)),$(VENV)/Scripts,$(VENV)/bin)
# `make CONSTRAINTS=.ci/lowest.txt test-fast`: at the lower bounds instead of the pinned versions.
CONSTRAINTS ?= constraints.txt

# Two processes of one thread each are faster than one process of two, and the same everywhere.
export OMP_NUM_THREADS := 1
# Outside a virtual environment, still prefer this interpreter's Jupyter kernel.
export JUPYTER_PREFER_ENV_PATH := 1
# torch's profiler announces each start and stop; a chapter starts it often.
export KINETO_LOG_LEVEL := 6

.PHONY: help book test test-fast lock linkcheck serve clean

help:
	@echo "make book       execute the chapters and build the HTML"
	@echo "make test       lint, types, unit tests, every chapter through papermill"
	@echo "make test-fast  unit tests but the slow ones: a minute and a half"
	@echo "make serve      show the built book at port 8000"
	@echo "make linkcheck  also try the book's external links (needs a network)"
	@echo "make lock       write constraints.txt anew"
	@echo "make clean      remove what was built (the environment stays)"

book: $(VENV)/.installed
	@$(BIN)/python -m book.build

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not chapters and not browser and not slow"

linkcheck: book
	PYTHONPATH=. $(BIN)/jupyter-book build _build/src --path-output _build/linkcheck --builder linkcheck

serve:
	$(BIN)/python -m http.server --directory _build/html 8000

# A python already in $(VENV) is used as it is: GPU users put their torch there first,
# conda users say VENV=$$CONDA_PREFIX.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@python=$(BIN)/python; test -x $$python || python="$(PYTHON)"; \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "gfo needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "no virtual environment; on Debian or Ubuntu: apt install python3-venv make git"; exit 1; }
	@echo "installing the versions of $(CONSTRAINTS) into $(VENV) (a minute or two)"
	@$(BIN)/python -m pip install -qq -c $(CONSTRAINTS) -e ".[book,test]"
	@touch $@

# Freeze on the oldest supported interpreter (`make PYTHON=python3.11 lock`): a newer one may pin
# releases that the oldest cannot install. HOLD keeps what must not float: the torch pair tested.
HOLD := torch==2.13.0 torchvision==0.28.0
LOCK := _build/lock

lock:
	rm -rf $(LOCK) && $(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install -qq $(HOLD) -e ".[book,test,laplace]"
	{ echo "# The versions tested together, written by \`make lock\`. Held: $(HOLD)."; \
	$(LOCK)/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.txt
	rm -rf $(LOCK)

clean:
	rm -rf _build .pytest_cache .ruff_cache
