# Two commands are all the set-up that a fresh machine needs (CPython 3.11 to 3.13 and gcc):
#
#   make demo    the environment, then a first measurement
#   make test    the environment, then format, lint, types, import rules and tests
#   make gate    the environment, then this project's exact gates against the parent commit
#   make dashboard   the environment, then the results in a browser
#
# Repeating either skips what is done. Others: make env, make format, make clean.
# Variables: PYTHON=python3.12 (which interpreter), ARGS="--device cuda" (more flags for the demo),
# TORCH="torch==2.13.0" (what to install where no fitting torch is found), PYTEST_ARGS="-k store" (flags for pytest; left
# alone it runs all but the slow tests, `make test PYTEST_ARGS=` runs those too).

PYTHON      ?= python3
TORCH       ?= torch==2.13.0
ARGS        ?=
PYTEST_ARGS ?= -m "not slow"

# Tests that drive a browser or judge what they measured for real: one after the other.
ALONE := tests/browser tests/e2e/test_declarations.py

# What the recipes below call.
PY      := .venv/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check --quiet --quiet
INSTALL := $(PIP) install --constraint .venv/constraints.txt
# No build isolation: it fetches setuptools each time, which a box without a network cannot. `compat` registers this folder
# by a plain path; the default import hook costs every interpreter about 30 ms of start-up.
OURS    := --no-build-isolation --config-settings editable_mode=compat --editable

.DEFAULT_GOAL := help
.PHONY: help demo dashboard test gate env format clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: .venv/.base
	@$(PY) -m harness run quickstart $(ARGS)
	@echo "look at it:  make dashboard, then http://127.0.0.1:8050/compare?a=latest/reference&b=latest/kv=prealloc"

dashboard: .venv/.serve
	@$(PY) -m dashboard $(ARGS)

test: .venv/.dev
	@echo "== format and lint"
	@$(PY) -m ruff format --check --quiet . || { echo "the files above are not formatted: make format"; exit 1; }
	@$(PY) -m ruff check --quiet .
	@echo "== types"
	@$(PY) -m mypy
	@echo "== import rules"
	@.venv/bin/lint-imports --no-logo
	@echo "== tests, side by side"
	@$(PY) -m pytest $(PYTEST_ARGS) -n 2 --dist loadfile $(ALONE:%=--ignore=%)
	@echo "== tests that want the machine to themselves"
	@$(PY) -m pytest $(PYTEST_ARGS) $(ALONE)

gate: .venv/.base
	@echo "== gate"
	@PYTHON=$(PY) ci/self-gate

env: .venv/.dev
	@echo "the environment is ready: .venv"

format: .venv/.dev
	@$(PY) -m ruff check --quiet --fix --exit-zero .
	@$(PY) -m ruff format .

clean:
	rm -rf .venv build dist *.egg-info .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the rules below ask Python. Each is a script of its own, because neither pip nor our packages are there yet.

# Is this interpreter one that we support?
define PYTHON_FITS
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
endef

# Is there a torch, within the range that pyproject.toml names, that really imports? Prints its version.
define TORCH_FITS
import re, sys, tomllib
with open("pyproject.toml", "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
wanted = next(text for text in dependencies if text.startswith("torch>"))
low, high = (tuple(map(int, pair)) for pair in re.findall(r"(\d+)\.(\d+)", wanted))
try:
    import torch
except Exception:
    sys.exit(1)
have = tuple(map(int, torch.__version__.split(".")[:2]))
print(torch.__version__)
sys.exit(not low <= have < high)
endef

# Our pins, less what the machine brought along itself, plus the torch that is there: pip can then neither replace that
# torch by another build nor swap the machine's libraries under it; where it would have to, it stops and says so.
define CONSTRAINTS
import importlib.metadata, pathlib, re, sys
def normal(name): return re.sub(r"[-_.]+", "-", name).lower()
here = pathlib.Path(sys.prefix).resolve()
found = list(importlib.metadata.distributions())
brought = {normal(one.name) for one in found if not pathlib.Path(one.locate_file("")).resolve().is_relative_to(here)}
for line in pathlib.Path("constraints.txt").read_text().splitlines():
    if "==" in line and normal(line.split("==")[0]) not in brought:
        print(line)
print("torch==" + importlib.metadata.version("torch"))
endef
export PYTHON_FITS TORCH_FITS CONSTRAINTS

# The interpreter, the virtual environment and torch. Remade only when .venv is missing or broken. An environment that
# shares the machine's torch sees it through --system-site-packages, or, if PYTHON is itself in one, through a .pth file.
.venv/.torch: pyproject.toml
	@set -e; \
	if ! $(PY) -c "$$PYTHON_FITS" 2>/dev/null; then \
	    chosen=; \
	    for candidate in $(if $(filter file,$(origin PYTHON)),python3 python3.13 python3.12 python3.11,"$(PYTHON)"); do \
	        if "$$candidate" -c "$$PYTHON_FITS" 2>/dev/null; then chosen=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$chosen" ]; then \
	        echo "minimind-bench needs CPython 3.11, 3.12 or 3.13; '$(PYTHON)' is" \
	            "$$($(PYTHON) --version 2>&1 | head -n 1). Name another one: make PYTHON=/path/to/python3.12" >&2; \
	        exit 2; \
	    fi; \
	    shared=; if "$$chosen" -c "$$TORCH_FITS" >/dev/null 2>&1; then shared=--system-site-packages; fi; \
	    echo "[1/3] $$("$$chosen" --version) -> .venv$${shared:+, sharing the torch that is installed}"; \
	    "$$chosen" -m venv --clear $$shared .venv || { \
	        echo "could not make a virtual environment: does this Python lack its venv module (Debian: python3-venv)?" >&2; \
	        exit 2; \
	    }; \
	    if [ -n "$$shared" ]; then \
	        outer=$$("$$chosen" -c 'import sys, sysconfig; print(sysconfig.get_path("purelib") * (sys.prefix != sys.base_prefix))'); \
	        inner=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	        if [ -n "$$outer" ]; then echo "$$outer" > "$$inner/outer-environment.pth"; fi; \
	    fi; \
	fi
	@if have=$$($(PY) -c "$$TORCH_FITS"); then \
	    echo "[2/3] torch $$have is there and stays"; \
	else \
	    echo "[2/3] $(TORCH) (the largest download, once: 0.2 GB as a CPU build, several GB with CUDA)"; \
	    $(PIP) install $(TORCH); \
	fi
	@touch $@

.venv/.base: .venv/.torch pyproject.toml constraints.txt
	@$(PY) -c "$$CONSTRAINTS" > .venv/constraints.txt
	@echo "[3/3] the few packages that measuring needs"
	@{ $(INSTALL) "setuptools>=77.0.3" && $(INSTALL) $(OURS) .; } || { \
	    $(PY) -c 'import numpy, psutil, pyarrow, rich, safetensors, tokenizers, torch' && \
	    echo "nothing could be installed, but all that measuring needs is here: run from this folder, as make does"; \
	}
	@touch $@

.venv/.serve: .venv/.base
	@echo "[+] what the dashboard and the reports need"
	@$(INSTALL) $(OURS) ".[serve]"
	@touch $@

.venv/.dev: .venv/.base
	@echo "[+] the tools for developers: tests, lint, types (about a minute)"
	@$(INSTALL) $(OURS) ".[dev]"
	@touch $@
