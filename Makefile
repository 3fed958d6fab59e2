# make            what can be made
# make demo       teach a small model to write SQL: sets up everything, trains, shows before and after
# make test       sets up everything and passes the tests (under 12 minutes)
#
# Which PyTorch is installed is one variable, TORCH; from where, another, TORCH_INDEX (see README, "PyTorch").

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv
export TORCH TORCH_INDEX VENV

.PHONY: help setup demo test test-all bench lint format clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup:
	@$(PYTHON) scripts/setup.py

demo: setup
	@$(VENV)/bin/tunesmith demo

test: setup lint
	@echo "running the tests"
	@CI=1 $(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# make test-all   the long matrices and the real trainings too; writes benchmarks/results/<date>-tests.md
test-all: setup lint
	@$(VENV)/bin/python scripts/test_all.py

# make bench      our speed and memory beside those of others, each in its own environment; DoRA's time beside LoRA's
bench: setup
	@$(VENV)/bin/python benchmarks/speed.py
	@$(VENV)/bin/python benchmarks/speed.py --data alpaca --method dora
	@$(VENV)/bin/python benchmarks/methods.py --methods lora,dora --rounds 20

# make lint       ruff and mypy
lint: setup
	@echo "checking style and types"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

# make format     ruff's layout and its safe fixes
format: setup
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

# make clean      the environments and what tests left; models and kernels stay in ~/.cache/tunesmith
clean:
	@$(PYTHON) scripts/setup.py --remove
	@rm -rf .venv-rivals build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
