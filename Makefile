# One command for each thing. Every target makes the environment it needs by itself.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
PYTEST_ARGS ?=
# Tests of servers mostly wait, so two processes take half the time of one, on two cores as well. With three, the run is
# shorter still, but bounds of a second within servers pass more often.
WORKERS     ?= 2
PARALLEL    := --numprocesses=$(WORKERS) --dist=worksteal
# How long `make test-all` injects random faults.
SOAK_MINUTES ?= 5
EXPLORE_ARGS ?=
FUZZ_ARGS   ?=
BENCH_ARGS  ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-loaded test-nova test-production explore fuzz check lint types fast bench man
.PHONY: lock sbom clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(READY)  ## run 1000 simulated nodes in one process; fails if the views disagree
	@echo 'nodestate up --nodes 1000 --seconds 15   (a cell in one process, with an embedded broker and store)'
	@$(BIN)/nodestate up --nodes 1000 --seconds 15

test: $(READY)  ## every kind of test, each real server: at most 6 minutes on 2 idle cores (HYPOTHESIS_PROFILE=fast)
	tests/services/ensure.sh
	$(BIN)/python -m pytest -m "not thorough" $(PARALLEL) $(PYTEST_ARGS)

test-all: $(READY) .venv/.bench  ## also tests marked "thorough", HYPOTHESIS_PROFILE=thorough, faults, test-nova
	tests/services/ensure.sh --peers
	HYPOTHESIS_PROFILE=thorough SOAK_MINUTES=$(SOAK_MINUTES) \
	    $(BIN)/python -m pytest --timeout=3600 $(PARALLEL) $(PYTEST_ARGS)
	$(MAKE) test-nova

test-nova: .venv-nova/.ready  ## the tests beside Nova 34, in an environment of their own
	tests/services/ensure.sh
	.venv-nova/bin/python -m pytest -m nova -W ignore $(PYTEST_ARGS) tests/nova

test-loaded: $(READY)  ## the tests in tests/faults while two busy loops run beside them
	tests/services/ensure.sh
	$(BIN)/python -m harness.busy_loops 2 $(BIN)/python -m pytest tests/faults $(PARALLEL) $(PYTEST_ARGS)

test-production: $(READY)  ## follow "run in production" on a fresh Debian under systemd (root; tests/production/README.md)
	$(BIN)/python -m pytest -q tests/test_grafana_board.py
	PYTHON=$(BIN)/python tests/production/run.sh

explore: $(READY)  ## take every interleaving of small worlds, as deep as 30 minutes reach (EXPLORE_ARGS=--help)
	$(BIN)/python -m tests.explorer $(EXPLORE_ARGS)

fuzz: $(READY)  ## give each fuzz target 200,000 hostile inputs (FUZZ_ARGS="--inputs 1000"; --help)
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

check: lint types fast  ## lint, types and the tests that need no server

lint: $(READY)  ## ruff, rules and format; who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

fast: $(READY)  ## the tests that need no server
	$(BIN)/python -m pytest -m "not service" $(PYTEST_ARGS)

# Its extra is not in the lock, so it gets a stamp of its own. make bench BENCH_ARGS="all --quick" takes two minutes.
bench: $(READY) .venv/.bench  ## run the whole evaluation and write its report, or what BENCH_ARGS says
	tests/services/ensure.sh
	$(BIN)/python -m bench $(or $(BENCH_ARGS),all)

# uv resolves for all platforms and Python versions at once, which pip-tools does not. It stands beside the
# environment, not in it: nobody else needs it.
lock:  ## pin all dependencies again, with hashes
	test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv; }
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	    --no-emit-index-url --custom-compile-command "make lock" --extra dev --output-file requirements.lock pyproject.toml

man: $(READY)  ## write a page of the manual for each command into build/man
	$(BIN)/python docs/man_pages.py build/man

# The list of the packages that the image has, in the form of CycloneDX, which scanners of vulnerabilities read. Its tool
# stands beside the environment, as that of `lock` does.
sbom:  ## write the software bill of materials of the image, build/sbom.json
	test -x .venv-sbom/bin/cyclonedx-py || { $(PYTHON) -m venv .venv-sbom && \
	    .venv-sbom/bin/pip install --quiet cyclonedx-bom uv; }
	mkdir -p build
	.venv-sbom/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --constraints requirements.lock --extra ed25519 --extra redis --extra serve --extra sql \
	    --output-file build/image.lock pyproject.toml
	.venv-sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
	    --output-file build/sbom.json build/image.lock

clean:  ## remove what the other targets made
	rm -rf .venv .venv-lock .venv-nova .venv-sbom $(INSTALL_LOG) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- the environment ------------------------------------------------------------------------------

INSTALL_LOG := .venv-install.log
PIP         := $(BIN)/python -m pip --quiet --disable-pip-version-check

# $(call step,TEXT,COMMAND): print the text, run the command with its output in the log; if it fails, show the end of
# the log.
define step
@printf '%s\n' '$(1)'
@{ $(2); } >>$(INSTALL_LOG) 2>&1 || { \
    echo 'FAILED. The last lines of $(INSTALL_LOG):' >&2; \
    tail -n 20 $(INSTALL_LOG) | sed 's/^/    /' >&2; \
    echo 'If a package could not be fetched, check the network, or the proxy in HTTPS_PROXY or pip.conf.' >&2; \
    echo 'Then run the same make command again; make clean removes a half-made environment.' >&2; exit 1; }
endef

.venv/.bench: $(READY)
	$(call step,benchmarks: install the clients and plotting tools of the extra "bench" (log: $(INSTALL_LOG)),\
	    $(PIP) install --no-build-isolation -e '.[bench]')
	@touch $@

.venv-nova/.ready: tests/nova/requirements.txt pyproject.toml
	@: >$(INSTALL_LOG)
	$(call step,1/2 create .venv-nova and install Nova; this takes some minutes (log: $(INSTALL_LOG)),\
	    test -x .venv-nova/bin/pip || $(PYTHON) -m venv .venv-nova; \
	    .venv-nova/bin/python -m pip --quiet --disable-pip-version-check install -r tests/nova/requirements.txt)
	$(call step,2/2 install nodestate itself,\
	    .venv-nova/bin/python -m pip --quiet --disable-pip-version-check install --no-deps -e .)
	@touch $@

# The stamp is written last, so that an interrupted installation is repeated.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "nodestate needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
	    echo "Name another one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@: >$(INSTALL_LOG)
	@# Debian's python3 lacks the module ensurepip, with which a new environment gets pip; python3-venv has it.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	    { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || { \
	    echo "$(PYTHON) -m venv does not work here. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	$(call step,1/3 create the environment .venv (log of all steps: $(INSTALL_LOG)),\
	    $(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	        apt-get update && apt-get install -y --no-install-recommends python3-venv; }; \
	    test -x $(BIN)/pip || $(PYTHON) -m venv .venv)
	$(call step,2/3 install the packages of requirements.lock; this takes about a minute,\
	    $(PIP) install --require-hashes -r requirements.lock)
	$(call step,3/3 install nodestate itself,$(PIP) install --no-deps --no-build-isolation -e .)
	@touch $@
