# Everything a person or the CI runs. `make` alone lists it.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MNIST := .cache/mnist/SOURCE
SOURCES := agent tests packaging
# Real processes are tested one after the other: what they need of the machine is part of what they show.
IN_PARALLEL := tests/unit tests/properties tests/simulation tests/tidy

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv mnist demo check test bench format clean

help: ## this list
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt packaging/setup.sh
	packaging/setup.sh

$(MNIST): packaging/fetch_mnist.py | $(READY)
	$(BIN)/python packaging/fetch_mnist.py
	@touch $@

venv: $(READY) ## install what is needed into .venv (as root also Debian packages that are missing)

mnist: $(MNIST) ## the MNIST data for demo and tests, into .cache/mnist

demo: $(READY) $(MNIST) ## several sites on this machine: they meet, serve, train and survive
	@$(BIN)/python -m compileall -q agent
	$(BIN)/atoll demo

format: $(READY) ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(READY) ## format, lint, types, import rules and fast tests: less than two minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto tests/unit tests/properties tests/tidy -m "not process and not root"

# Everything, and nothing is skipped: what a test needs and this machine lacks is a failure.
test: $(READY) $(MNIST) ## all checks and all tests, real processes included
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	ATOLL_REQUIRE_ALL=1 $(BIN)/python -m pytest -p tests.tidy.no_skips -n auto $(IN_PARALLEL)
	ATOLL_REQUIRE_ALL=1 $(BIN)/python -m pytest -p tests.tidy.no_skips tests/process

bench: $(READY) $(MNIST) ## every benchmark; results go to benchmarks/results
	@set -e; for file in $(wildcard benchmarks/bench_*.py); do \
		echo "== $$file"; $(BIN)/python $$file; done
	@test -n "$(wildcard benchmarks/bench_*.py)" || { echo "there are no benchmarks"; exit 1; }

bench-%: $(READY) $(MNIST) ## one benchmark: bench-mesh runs benchmarks/bench_mesh.py
	$(BIN)/python benchmarks/bench_$*.py

clean: ## remove caches and the virtual environment; the data in .cache stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find agent tests -name __pycache__ -type d -prune -exec rm -rf {} +
