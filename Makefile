# Tollhouse: `make demo` and `make test` set themselves up on a machine with Python 3.11+.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.demo-ready
DATA ?=

# install LOCK: the locked requirements, then this clone by itself.
define install
$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation -e .
endef

.DEFAULT_GOAL := help
.PHONY: help setup system demo test test-long test-elsewhere check format bench bench-gateway bench-local \
	bench-kernels bench-routing bench-semantic kernels kernels-cuda lock clean

help: ## say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(READY) ## make the environment in .venv
$(READY): requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "Installing the locked requirements into $(VENV) ..."
	@$(call install,requirements-dev.lock)
	@touch $@ $(DEMO_READY)

# The demo's requirements are some of the tests', in the same versions, and share their environment.
$(DEMO_READY): requirements-demo.lock pyproject.toml | $(BIN)/python
	@echo "Installing what the demo needs into $(VENV) ..."
	@$(call install,requirements-demo.lock)
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tollhouse needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv is missing: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

system: ## install what some tests use and Python cannot bring (as root; optional)
	@sh deploy/system-packages.sh

demo: ## the whole job on real models (make demo ARGS=--exit ends it)
	@$(MAKE) -s --no-print-directory -j2 $(DEMO_READY) kernels # a download beside a compiler
	@$(BIN)/tollhouse demo $(ARGS)

test: $(READY) system kernels ## every test, from a fresh clone
	@$(BIN)/python -m pytest -m "not long" $(ARGS)

test-long: $(READY) system kernels ## the tests that take minutes
	@$(BIN)/python -m pytest -m "long" $(ARGS)

test-elsewhere: $(READY) system kernels ## on other CPUs and other days (an hour; ARGS="--only day")
	@$(BIN)/python -m tests.elsewhere $(ARGS)

check: $(READY) ## formatting, types, layers, docstrings
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/interrogate -q --fail-under 100 -c pyproject.toml gateway local_models
	@$(BIN)/interrogate -q --fail-under 100 -c pyproject.toml -M -w '^test_' tests || \
		{ $(BIN)/interrogate -vv --no-color -c pyproject.toml -M -w '^test_' tests | grep MISSED; \
		echo "each test says in its docstring what it promises (CONTRIBUTING.md, 5)"; exit 1; }

format: $(READY) ## let ruff format everything
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

kernels: ## build the fused operators where there is a C++ compiler
	@sh kernels/build.sh

kernels-cuda: ## compile the CUDA twins where there is nvcc
	@sh kernels/build.sh --cuda

bench: bench-kernels bench-local bench-gateway ## the benchmarks of kernels, local models and gateway

bench-kernels: $(READY) kernels ## fused operators against plain ONNX Runtime
	@$(BIN)/python -m tests.bench.bench_kernels $(ARGS)

bench-local: $(READY) kernels ## tokens per second of the local model
	@$(BIN)/python -m tests.bench.bench_local_model $(ARGS)
	@$(BIN)/python -m tests.bench.bench_embedder $(ARGS)
	@$(BIN)/python -m tests.bench.bench_cpus

bench-gateway: $(READY) ## one table beside nginx and other gateways (ARGS="--peers litellm")
	@$(BIN)/python -m tests.bench.bench_gateway $(ARGS)

bench-routing: $(READY) ## routing quality against baselines (DATA=folder)
	@$(BIN)/python -m tests.bench.bench_routing_cpu
	@$(BIN)/python -m tests.bench.bench_routing $(DATA) $(ARGS)

bench-semantic: $(READY) ## wrong hits and recall of the semantic cache (DATA=folder)
	@$(BIN)/python -m tests.bench.bench_semantic $(DATA) $(ARGS)

lock: $(READY) ## write the hash-locked requirements anew
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url pyproject.toml --extra dev -o requirements-dev.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url pyproject.toml --extra demo -c requirements-dev.lock \
		-o requirements-demo.lock

clean: ## remove what was built here (models stay in the cache)
	rm -rf $(VENV) .build build dist .mypy_cache .ruff_cache local_models/lib
