# `make` alone lists the targets. Everything runs in .venv, which the first target that needs it makes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The Python that makes the virtual environment (3.11 or newer).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where the demo puts what it makes.
DEMO ?= demo
# More flags for the demo: DEMO_FLAGS=--quick shows the path in about a minute, without the accuracy.
DEMO_FLAGS ?=
# Extra package index for torch. PyPI's own Linux build carries CUDA (gigabytes); on a machine without a GPU
# TORCH_INDEX=https://download.pytorch.org/whl/cpu gets the small one.
TORCH_INDEX ?=

# Files of the campaigns to run.
CAMPAIGNS ?= tests

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
# Two files at a time. Not for the real parts: beside other work Ray's agent may take longer to start than its 15 s.
UNIT := $(PYTEST) tests/unit -n 2 --dist loadfile

.PHONY: help install demo test test-servers test-stack test-campaigns test-survival test-cluster test-unit lint format ui cluster-up cluster-status cluster-down audit sbom constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with the pinned dependencies

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about a minute the first time)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"{sys.executable} is Python {v[0]}.{v[1]}; 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt uv
	@# torch by pip, which knows this machine's own indexes; the rest by uv, which is several times faster
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## the whole path on generated clips: raw video to a trained, tracked model
	@$(BIN)/vast demo --out $(DEMO) $(DEMO_FLAGS)

test: $(INSTALLED) ## unit tests, then integration on a real S3 server, real Ray and a real MLflow
	@$(UNIT)
	@$(PYTEST) tests/integration tests/gpu -m "not servers and not stack and not campaign and not survival" --durations=12

test-servers: $(INSTALLED) ## MLflow's pages and the reports in a browser, a tracking server over PostgreSQL
	@$(PYTEST) tests -m servers

test-stack: $(INSTALLED) ## a whole local cluster, preflight with planted faults, planted secrets, Kubernetes' jobs on Ray
	@$(PYTEST) tests -m stack --durations=8

test-campaigns: $(INSTALLED) ## the demo, pictures to a video model and every command of the README; builds and searches killed over and over, a store that keeps failing
	@$(PYTEST) $(CAMPAIGNS) -m campaign

test-survival: $(INSTALLED) ## training runs whose ranks, Ray and driver are killed over and over, and whose store fails
	@$(PYTEST) tests -m survival

test-cluster: $(INSTALLED) ## three hosts in network namespaces, one killed, one cut off; needs root and iproute2
	@$(PYTEST) tests -m cluster

test-unit: $(INSTALLED) ## the quick unit tests alone
	@$(UNIT) -m "not slow"

lint: $(INSTALLED) ## formatting, style and types; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(INSTALLED) ## let ruff format and mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

ui: $(INSTALLED) ## MLflow's pages over the demo's runs
	@$(BIN)/vast ui --store sqlite:///$(abspath $(DEMO))/mlflow.db

cluster-up: $(INSTALLED) ## an object store, MLflow and two Ray nodes on this machine; then: source .vast/cluster/env
	@$(BIN)/python infra/local/cluster.py up

cluster-status: $(INSTALLED) ## what of it runs, and where
	@$(BIN)/python infra/local/cluster.py status

cluster-down: $(INSTALLED) ## stop exactly what cluster-up started; its data stay
	@$(BIN)/python infra/local/cluster.py down

audit: $(INSTALLED) ## known vulnerabilities in the pinned packages; needs the network
	@$(BIN)/python infra/audit/audit.py

sbom: $(INSTALLED) ## what is installed, as build/sbom.cdx.json (CycloneDX)
	@mkdir -p build
	@$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate -o build/sbom.cdx.json $(BIN)/python

constraints: $(INSTALLED) ## rewrite constraints.txt from what is installed
	@$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean: ## remove the virtual environment and the demo
	@rm -rf $(VENV) $(DEMO) build *.egg-info
