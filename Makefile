# make setup · demo · test · check · cluster-test · bench      (make help explains)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench clean

help: ## Show the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

setup: $(VENV)/.complete ## Make the locked CPU environment in .venv

$(VENV)/.complete: requirements/cpu.lock requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "VisionRL needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the locked environment (2.5 GB on disk, about two minutes)"
	@$(BIN)/pip install -qq --no-deps -r requirements/cpu.lock -r requirements/dev.lock || { \
	  echo "Where pip does not find torch ...+cpu: the CPU builds lie in PyTorch's own index, not on PyPI." >&2; \
	  echo "Set PIP_EXTRA_INDEX_URL to PyTorch's CPU index (see pytorch.org, Get Started) and run make again." >&2; exit 1; }
	@$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@$(BIN)/python -m visionrl.cpu_env
	@touch $@

demo: setup ## Train the tiny model on this machine: configs/crafter-tiny.yaml
	$(BIN)/visionrl run configs/crafter-tiny.yaml

test: setup ## All tests that need no cluster and no GPU
	$(BIN)/python -m pytest -m "not cluster and not gpu"

check: setup ## Formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## Remove the environment and what tests leave behind (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
