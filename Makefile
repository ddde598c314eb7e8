# make demo   train, evaluate and report on a small family from scratch (two CPU cores, about ten minutes)
# make test   everything the tests need, then the tests
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: demo test lint slow clean

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

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs/demo
