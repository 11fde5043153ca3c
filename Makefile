# Needs Linux (or macOS), Python >= 3.10 with venv, and make. Everything lands in .venv/ and runs/.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt
PROFILING ?= ../shared/data/vidur/profiling
PROFILING_SOURCE := 'microsoft/vidur@7d47513 data/profiling (MIT)'
DEMO_ROUTERS := random,round-robin,power-of-two,least-outstanding,vllm-dp,least-pending-prefill,least-kv,lmetric,learned

.PHONY: help venv demo test lint bench calibrations docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' Makefile

venv: .venv/.core  ## environment with the package

demo: .venv/.core  ## compare routers on real traffic; HTML report
	@$(BIN)/trimtab compare azure-conv --routers $(DEMO_ROUTERS) --seeds 3 --out runs/demo

test: .venv/.dev  ## all tests
	@$(BIN)/python -m pytest -q -n 2

lint: .venv/.dev  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy

bench: .venv/.dev  ## run every benchmark, rewrite benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/run_all.py

calibrations: .venv/.dev  ## fit the calibrations that ship, from Vidur's profiles in $(PROFILING)
	@for device in a100 h100 a40; do \
	  node=$$(echo $$device | sed 's/a40/a40_pairwise_nvlink/; s/00$$/00_dgx/'); \
	  $(BIN)/trimtab calibrate $(PROFILING)/compute/$$device $(PROFILING)/network/$$node \
	    --out src/trimtab/data/calibrations/$$device.json --source $(PROFILING_SOURCE) || exit 1; \
	done

docs: .venv/.docs  ## regenerate the reference, build the site into site/
	@$(BIN)/python docs/generate.py
	@$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

clean:  ## remove environment, caches and builds (not runs/)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.10 or later"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "$(PYTHON) is too old; trimtab needs Python 3.10 or later (make PYTHON=...)"; exit 1; }
	@echo "making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv

.venv/.core: .venv/bin/python $(INPUTS)
	@echo "installing trimtab and its dependencies (once, about a minute)"
	@$(INSTALL) --editable .
	@touch $@

.venv/.dev: .venv/.core $(INPUTS)
	@echo "installing what the tests need (once)"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

.venv/.docs: .venv/.core $(INPUTS)
	@echo "installing what the docs need (once)"
	@$(INSTALL) --editable '.[docs]'
	@touch $@
