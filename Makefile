# Two commands set everything up on a fresh machine, each alone: `make compare` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is written as modules are first read, even where the environment forbids it: pip would compile all of each
# package, which takes longer than the rest of the install, and tests that start processes would compile torch in each.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

# The core is what every change has to pass. The integrations, marked where they are, take as long again: emulators and
# sanitizers, a browser, a notebook, the loops of other libraries, processes that are killed. The core has a quicker
# test of each kind. A file is run by one worker, which starts what its tests share once.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 25

.PHONY: compare test test-all check attack bench clean

compare: .venv/study
	$(BIN)/puredrop compare digits

test: check
	$(PYTEST) -m "not integration"

test-all: check
	$(PYTEST)

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Random calls, files, arguments, faults and threads against what docs/reliability.md promises: about ten minutes.
attack: .venv/dev
	$(BIN)/python tools/attack.py

bench: .venv/bench
	$(BIN)/python benchmarks/dropout_cost.py

# The C sources and the build files are prerequisites, so that a change of them builds the library again.
.venv/study .venv/bench .venv/dev: .venv/%: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*) | $(BIN)/python
	$(INSTALL) --editable ".[$*]"
	$(BIN)/puredrop --version
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist
