# make demo   train, evaluate and report on a small family from scratch (two CPU cores, about ten minutes)
# make test   everything the tests need, then the tests
# make weekly the slow tests; then the short tier with the oldest and the newest versions of all that is needed
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
LOWEST := .venv-lowest
NEWEST := .venv-newest

.PHONY: demo test lint slow test-lowest test-newest weekly clean

$(BIN)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $@

$(BIN)/.dev: $(BIN)/.core
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: $(BIN)/.core
	$(BIN)/qernel train moire-n3 --run $(RUN) --walltime 6m
	$(BIN)/qernel scan $(RUN) --max-sweeps 120 --walltime 60s
	$(BIN)/qernel report $(RUN)

test: $(BIN)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(BIN)/.dev
	$(BIN)/python -m pytest -m slow

# What versions can break, in about three minutes: JAX's functions, linear algebra, a step, files, the command line.
TIER := $(addprefix tests/test_,versions.py warnings.py doctor.py spring.py gradient.py ewald.py hamiltonian.py exact.py \
	vmc.py checkpoint.py config.py cli.py)

$(LOWEST)/.test: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[test]' --constraint constraints-lowest.txt
	touch $@

test-lowest: $(LOWEST)/.test
	$(LOWEST)/bin/python -m pytest -n 2 -m "not slow" $(TIER)

# Always made anew: what is newest changes.
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --editable '.[test]'
	$(NEWEST)/bin/python -m pytest -n 2 -m "not slow" $(TIER)

weekly: slow test-lowest test-newest

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(LOWEST) $(NEWEST) runs/demo
