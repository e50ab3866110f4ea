# `make demo`, `make test` and `make check` each set up .venv on a fresh machine by themselves.
PYTHON ?= python3
BIN := .venv/bin
# spinning OpenMP threads on a busy machine cost far more than they bring
export OMP_WAIT_POLICY := PASSIVE

# loadfile: the tests of a file share what they train
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

.PHONY: demo test check docs lint types imports benchmark clean

demo: .venv/ready
	$(BIN)/partikel demo --out demo

test: .venv/ready lint types imports
	$(PYTEST) -m "not slow"

# what is long by nature: simulations in many dimensions, processes that are killed, compilers
check: .venv/ready docs
	$(PYTEST) -m slow

# the site in build/docs, without a network: tutorials run anew, warnings are errors
docs: .venv/ready
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs build/docs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/biome lint --error-on-warnings

types: .venv/ready
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: .venv/ready
	$(BIN)/lint-imports

benchmark: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step_cost.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gaussians.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/discriminator_flow_speed.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist demo
