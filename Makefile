# Every target makes what it needs: .venv, then the packages of its kind, each once (a stamp says so; the stamp is
# renewed when setup.py changes). `make` alone lists the targets.

VENV := .venv
PY := $(VENV)/bin/python
TPU_COMPILER := $(VENV)/tpu-compiler/.stamp
.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

# The first Python 3.11 to 3.13 that can make a virtual environment; choose another with `make PYTHON=/path/to/python`.
PYTHONS := python3 python3.13 python3.12 python3.11 python
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
REPORT := import sys, importlib.util as u; print("%d.%d" % sys.version_info[:2], \
	*["without " + m for m in ("venv", "ensurepip") if not u.find_spec(m)])
PYTHON ?= $(shell for p in $(PYTHONS); do \
	if $$p -c 'import venv, ensurepip; $(IN_RANGE)' >/dev/null 2>&1; then echo $$p; break; fi; done)

# torch goes in with pip, before everything that asks for it: pip may be configured with a local CPU wheel, which uv
# does not read. Where pip would fetch the CUDA build, ask for the CPU one:
#   make test TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH := torch==2.13.0
TORCH_ARGS ?=

# uv where it is there and can reach what it needs, else pip.
install = if command -v uv >/dev/null 2>&1 && uv pip install --quiet --python $(PY) $(1); then :; \
	else $(PIP_INSTALL) $(1); fi
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check

DEMO_OUT ?= demo_out
DEMO_ARGS ?=
TESTS ?= tests
WORKERS ?= 2

help: ## list the targets
	@echo "mmjax: multimodal large language models in JAX"
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r name what; do \
	printf '  make %-9s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.core-stamp ## teach a real language model to see and to draw on this machine (some 25 minutes on 2 cores)
	$(PY) -m mmjax.recipes.demo --workdir $(DEMO_OUT) $(DEMO_ARGS)

test: $(VENV)/.test-stamp ## the tests that protect every promise (about 16 minutes on 2 cores)
	JAX_PLATFORMS=cpu $(PY) -m pytest -n $(WORKERS) -q -m "not slow" $(TESTS)

test-all: $(VENV)/.test-stamp ## the slow grids as well; one part of it: make test-all TESTS=tests/nn
	JAX_PLATFORMS=cpu $(PY) -m pytest -n $(WORKERS) -q $(TESTS)

lint: $(VENV)/.dev-stamp ## ruff, and the floors that imports may not climb
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports

bench: $(VENV)/.test-stamp ## start-up, and speed on CPU beside transformers
	$(PY) tools/bench_startup.py
	JAX_PLATFORMS=cpu $(PY) tools/bench_cpu.py

clean: ## remove what make made: .venv, caches, demo_out
	rm -rf $(VENV) $(DEMO_OUT) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made-stamp:
	@if [ -x $(PY) ] && $(PY) -c '$(IN_RANGE)' 2>/dev/null && \
	  { $(PY) -m pip --version || $(PY) -m ensurepip; } >/dev/null 2>&1; then \
	  echo "Using the $(VENV) that is here ($$($(PY) --version))"; \
	elif [ -z "$(PYTHON)" ] && command -v uv >/dev/null 2>&1; then \
	  echo "Making $(VENV) with a Python that uv finds or fetches"; \
	  uv venv --quiet --clear --seed --python '>=3.11,<3.14' $(VENV); \
	elif [ -z "$(PYTHON)" ]; then \
	  echo "mmjax needs Python 3.11 to 3.13 with its venv and ensurepip modules; none of $(PYTHONS) is that." >&2; \
	  for p in $(PYTHONS); do $$p -c '$(REPORT)' 2>/dev/null | sed "s|^|  $$p: |" >&2; done; \
	  echo "Install one (on Debian and Ubuntu with apt install python3-venv), or name one:" \
	    "make PYTHON=/path/to/python3.12" >&2; exit 1; \
	elif ! $(PYTHON) -c '$(IN_RANGE)'; then \
	  echo "mmjax needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; \
	elif ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$(PYTHON) cannot make a virtual environment: its venv or ensurepip module is missing" \
	    "(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; \
	else \
	  echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); \
	fi
	@touch $@

$(VENV)/.core-stamp: setup.py $(VENV)/.made-stamp
	@echo "Installing mmjax into $(VENV)"
	@$(call install,-e .)
	@touch $@

$(VENV)/.test-stamp: setup.py $(VENV)/.core-stamp $(TPU_COMPILER)
	@echo "Installing the test environment: $(TORCH), then the rest"
	@$(PIP_INSTALL) $(TORCH_ARGS) $(TORCH)
	@$(call install,-e '.[test]')
	@touch $@

# libtpu compiles for TPUs that are not here. It lies beside the packages, not among them, and tests are told where:
# with libtpu among them, every program of jax on a machine without a TPU would look for one and say so.
$(TPU_COMPILER): $(VENV)/.made-stamp
	@rm -rf $(VENV)/tpu-compiler && mkdir -p $(VENV)/tpu-compiler
	@case "$$(uname -sm)" in "Linux x86_64") \
	  $(PIP_INSTALL) --no-deps --target $(VENV)/tpu-compiler 'libtpu>=0.0.40';; \
	  *) echo "There is no libtpu for $$(uname -sm): the tests that compile for TPUs will be skipped";; esac
	@touch $@

$(VENV)/.dev-stamp: setup.py $(VENV)/.core-stamp
	@echo "Installing the development tools"
	@$(call install,-e '.[dev]')
	@touch $@
