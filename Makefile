# Each command first sets up what it needs; the next call starts at once.
#   make demo       a sample, its facts, and the Dagster UI (ARGS=--no-ui exits after the facts)
#   make test       checks and all tests      make test-fast  the pure tests, in seconds
#   make test-deep  the same as test, with many more histories and faults
#   make check      ruff and mypy             make format     fix what ruff can fix
#   make bench      the comparison with its peers, and docs/performance.md (BENCH="--help" for options)
#   make setup      only the set-up           make lock       renew requirements.lock
#   make clean      remove everything that these commands made

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.10 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HISTORIES ?= 300
STEPS ?= 20
FAULTS ?= 10
PROCESSES ?= 8
RUNS ?= 10
SEQUENCES ?= 10
SEQUENCE_STEPS ?= 12
ARGS ?=
BENCH ?=
# Two processes work through the test modules and share one PostgreSQL server.
TESTS = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)
# The tests compute on one Spark server; these in a Java of their own process.
IN_OWN_JAVA = MCQ_TEST_SPARK=own $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
OWN_JAVA = -m own_java $(addprefix mcq_analytics_tests/test_,plans.py task_errors.py)
# And these on a standalone cluster, on which that server computes.
ON_CLUSTER = MCQ_TEST_SPARK=cluster $(BIN)/python -m pytest
OWN_JAVA_TOO = $(addprefix mcq_analytics_tests/test_,exactness.py faults.py histories.py retries.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-fast test-deep bench lock clean

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

setup: $(READY)

$(READY): requirements.lock setup.cfg
	@"$(PYTHON)" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null || { echo "no Python 3.10 to 3.13 with venv found: install one (on Debian and Ubuntu with python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): a few minutes the first time"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m mcq_analytics.spark.class_archive
	@touch $(READY)

demo: $(READY)
	@$(BIN)/mcq-analytics demo $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check
	$(TESTS)
	$(IN_OWN_JAVA) $(OWN_JAVA)

test-fast: $(READY)
	$(BIN)/python -m pytest -m fast --hypothesis-profile=fast -q $(ARGS)

test-deep: check
	HISTORIES=$(HISTORIES) STEPS=$(STEPS) FAULTS=$(FAULTS) PROCESSES=$(PROCESSES) RUNS=$(RUNS) \
	SEQUENCES=$(SEQUENCES) SEQUENCE_STEPS=$(SEQUENCE_STEPS) $(TESTS)
	HISTORIES=$(HISTORIES) STEPS=$(STEPS) FAULTS=$(FAULTS) $(IN_OWN_JAVA) $(OWN_JAVA_TOO)
	HISTORIES=$(HISTORIES) STEPS=$(STEPS) FAULTS=$(FAULTS) $(ON_CLUSTER) $(OWN_JAVA_TOO)
	$(IN_OWN_JAVA) $(OWN_JAVA)

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH)

# Resolved for all supported Pythons and systems, with hashes and without the address of an index.
lock:
	uv pip compile setup.cfg --extra dev --universal --python-version 3.10 --generate-hashes \
		--no-header --no-annotate --no-strip-extras --output-file requirements.lock

clean:
	rm -rf $(VENV) .mcq .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
