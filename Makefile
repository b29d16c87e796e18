# The same commands that CI runs. Each makes .venv by itself when it is missing or stale (infra/bootstrap.py).
.PHONY: help demo images test test-lanes test-docker check fix bench bench-peers bench-gpu lock clean env
.DEFAULT_GOAL := help
BIN := .venv/bin
# Written on first import: without it each process would compile torch, mlflow and kfp again (mlflow: 9 s instead of 4 s).
export PYTHONDONTWRITEBYTECODE :=
FOUND = $(shell for p in python3.11 python3.12 python3.13 python3.14; do $$p -c '' 2>/dev/null && echo $$p && break; done)
PYTHON ?= $(or $(FOUND),python3)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: .venv/.stamp ## the whole pipeline on made-up data, on this machine
	$(BIN)/biovlm run

images: .venv/.stamp ## the container images, with docker; OPTIONS="launcher", OPTIONS="--base debootstrap"
	$(BIN)/python -m infra.images.build $(OPTIONS)

test: .venv/.stamp ## every test but the lanes, on all cores; TESTS="-m 'not slow'" or TESTS=tests/house for some
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not lane" $(TESTS)

test-lanes: .venv/.stamp ## what takes minutes: Ray, MLflow over PostgreSQL, versions made again, a year of trainings; LANES=paths
	$(BIN)/python -m pytest -q -m "lane and not docker" --durations=12 $(or $(LANES),tests/components tests/pipelines tests/infra)

test-docker: .venv/.stamp ## the pipeline in containers beside the same in processes; after `make images`; needs docker and PostgreSQL
	BIOVLM_DOCKER=1 $(BIN)/python -m pytest -q -s -m docker --durations=8 tests/pipelines/test_containers.py tests/infra/kubernetes

check: .venv/.stamp ## format, lint, types, who may import whom, the house's rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house

fix: .venv/.stamp ## format, and what the linter can repair by itself
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: .venv/.stamp ## the measurements of benchmarks/LOG.md; BENCH=name for one
	$(BIN)/python -m benchmarks $(BENCH)

bench-peers: .venv/.stamp ## training beside ms-swift, LLaMA-Factory, TRL: hours; OPTIONS="--quick"; BIOVLM_VQA_RAD=folder
	$(BIN)/python -m benchmarks.peers $(OPTIONS)

bench-gpu: ## on one GPU, with any Python that has torch, transformers and peft: GPU_PYTHON=python3 OPTIONS="--dry"
	$(or $(GPU_PYTHON),python3) -m benchmarks.gpu $(OPTIONS)

lock: .venv/.stamp ## requirements/ anew from pyproject.toml; UPGRADE=all or UPGRADE="name name" for newer versions
	$(BIN)/python infra/lock.py

env: .venv/.stamp ## .venv alone

clean: ## .venv, caches and runs go; the work stays
	rm -rf .venv .biovlm build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.stamp: pyproject.toml infra/bootstrap.py $(wildcard requirements/*.txt)
	@command -v $(PYTHON) > /dev/null || { echo "no Python found, 3.11 to 3.14 needed; or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) infra/bootstrap.py
