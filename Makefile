# Every target does its own set-up in .venv; the second time that takes no time.
#   make VENV=dir          another place for the virtual environment
#   make TORCH=2.8.0       another version of torch than the pinned one (in a VENV of its own)
#   make PYTHON=python3.12 another interpreter (3.11 to 3.14)
#   make demo ARGS="--minutes 30"      options for the command behind a target
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
SETUP := PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh scripts/environment.sh $(VENV)
CODE := src tests benchmarks examples scripts
# Tests run two at a time, one thread each: faster on two cores than one test with two threads.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
BENCHMARKS ?= $(wildcard benchmarks/*.py)

.PHONY: help demo test test-all check soak bench format clean core dev
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

core:
	@$(SETUP)

dev:
	@$(SETUP) train serve eval dev

demo: core  ## pretrain a small GLM on Python's standard library, fill blanks in held-out modules
	@$(BIN)/python -m glmkit demo $(ARGS)

test: dev  ## the tests of every module
	@$(PYTEST) $(ARGS)

test-all: dev  ## the exhaustive variants that `make test` leaves out
	@$(PYTEST) -m exhaustive $(ARGS)

check: dev  ## formatting, lint, types, import layers, file budgets
	@$(BIN)/ruff format --check $(wildcard $(CODE))
	@$(BIN)/ruff check $(wildcard $(CODE))
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest tests/test_layout.py

soak: dev  ## the server under load and under a fuzzer for 10 minutes each
	@$(BIN)/python scripts/soak.py $(ARGS)

bench: dev  ## the benchmarks; each ends with one line of JSON
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file $(ARGS); done

format: dev  ## rewrite the code in the project's format
	@$(BIN)/ruff format $(wildcard $(CODE))
	@$(BIN)/ruff check --fix $(wildcard $(CODE))

clean:  ## remove caches and build products; the virtual environment and your runs stay
	@rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests benchmarks examples scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
