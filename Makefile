# comux. `make demo` and `make test` need nothing but Python 3.11+ with its headers and a C compiler.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
SECONDS ?= 60
SEED ?=
SERVER ?= kafka
FULL ?=
RUN := $(VENV)/bin/python
# Three at a time, also on two cores: half of the tests wait for something, and what only works on an idle machine is wrong.
PYTEST := -q -p no:cacheprovider -n 3 --dist worksteal --durations=15
# Tests with servers wait most of the time: for brokers to start, to be missed, to be back.
WITH_SERVERS := -q -p no:cacheprovider -n 4 --dist worksteal --durations=15
READ := -qq -p no:cacheprovider --collect-only >/dev/null
# Each of the other interpreters: scripts/other-pythons names it and its path.
OTHERS = scripts/other-pythons $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') |
TIMES := $(abspath $(VENV))/test-times
TIMED := $(abspath scripts/timed) $(TIMES)
export COMUX_TEST_INSTALLED := 1
export PYTHONDONTWRITEBYTECODE ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-here run-here test-services run-services test-others run-others others-ready read-tests servers-fetched services-up services-down check bench torture sanitize models clean setup dev

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:
	@scripts/setup-venv $(PYTHON) $(VENV) $$([ -f $(VENV)/.dev ] && echo requirements-dev.txt || echo requirements.txt)

dev:
	@mkdir -p $(VENV).lock && rmdir $(VENV).lock
	@scripts/setup-venv $(PYTHON) $(VENV) requirements-dev.txt
	@touch $(VENV)/.dev

demo: setup  ## four synthetic cameras, decoded, looked at, results re-emitted; make demo ENGINE=kafka ARGS="--seconds 10"
ifeq ($(ENGINE),kafka)
	@servers=$${KAFKA_BOOTSTRAP_SERVERS:-$$($(RUN) scripts/services up --while $$$$ kafka)} && \
	    $(VENV)/bin/comux demo --address "kafka://$$servers?prefix=demo-$$$$." $(ARGS)
else
	@$(VENV)/bin/comux demo $(ARGS)
endif

test: dev  ## every test, on every interpreter found; with real servers where they can start
	@rm -f $(TIMES)
	@$(MAKE) -s run-here servers-fetched && $(MAKE) -s run-services others-ready && $(MAKE) -s run-others; code=$$?; cat $(TIMES); exit $$code

test-here: dev  ## the tests that need no servers, on this Python
	@$(MAKE) -s run-here

test-services: dev servers-fetched  ## the tests that need real servers: Java 17, Maven, Go, else they say that they were skipped
	@$(MAKE) -s run-services

run-here: read-tests
	@cd tests && $(TIMED) "tests without servers" ../$(VENV)/bin/pytest $(PYTEST) -m "not torture and not services" $(ARGS)

run-services:
	@cd tests && $(TIMED) "tests with servers" ../$(VENV)/bin/pytest $(WITH_SERVERS) -m "services and not torture" $(ARGS)

servers-fetched: dev
	@for server in kafka mongo mongo-streams; do $(RUN) scripts/services fetch $$server || [ $$? = 3 ] || exit 1; done

# Each worker reads all tests; what pytest makes of their assertions is then there already.
read-tests: dev
	@cd tests && ../$(VENV)/bin/pytest $(READ)

# The environments of the other interpreters: mostly waiting for downloads.
others-ready: dev
	@$(OTHERS) while read -r v path; do \
	    ($(TIMED) "environment of Python $$v" nice scripts/setup-venv $$path $(VENV)-$$v requirements-test.txt && \
	        cd tests && nice ../$(VENV)-$$v/bin/pytest $(READ)) </dev/null || exit 1; \
	done

test-others: others-ready  ## what may depend on Python's version, on each other one found
	@$(MAKE) -s run-others

run-others:
	@$(OTHERS) while read -r v path; do \
	    (cd tests && $(TIMED) "core tests on Python $$v" ../$(VENV)-$$v/bin/pytest $(PYTEST) \
	        -m "core and not torture and not services") </dev/null || exit 1; \
	done

services-up: setup  ## a Kafka broker on this machine, until make services-down; SERVER=kafka3, mongo, mongo-streams: others
	@$(RUN) scripts/services up $(SERVER)

services-down:
	@$(PYTHON) scripts/services down

check: dev  ## style, types, layers, C warnings as errors
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@PYTHONPATH=. $(VENV)/bin/lint-imports --no-cache
	@build=$$(mktemp -d) && trap 'rm -rf "$$build"' EXIT && \
	    COMUX_C_STRICT=1 $(RUN) setup.py -q build_ext --force --build-lib "$$build" --build-temp "$$build" >/dev/null && \
	    echo "C: no warnings"

bench: dev  ## ring, video and Kafka beside their rivals: an hour or more; make bench ARGS="--quick"
	@grep -v '^#' benchmarks/requirements.txt | while read -r package; do \
	    PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m pip install -q --no-input --no-deps "$$package" || \
	        echo "bench: $$package cannot be installed here"; done
	@$(RUN) benchmarks/run.py $(ARGS)

torture: dev  ## the ring's torture, then the long tests: SECONDS=600 SEED=7 REPORT=path; CAMPAIGN=1 JOBS=4: deaths at every step
	@$(RUN) scripts/torture.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(REPORT),--report $(REPORT)) \
	    $(if $(CAMPAIGN),--campaign $(if $(JOBS),--jobs $(JOBS)) $(if $(PAGE),--page $(PAGE)))
	@$(if $(CAMPAIGN),true,cd tests && COMUX_TORTURE_SECONDS=$(SECONDS) COMUX_TORTURE_SEED=$(SEED) \
	    ../$(VENV)/bin/pytest -q -p no:cacheprovider -s -m torture --timeout=0 -o faulthandler_timeout=0 $(ARGS))

sanitize: dev  ## the ring under the sanitizers, every metadata byte changed, attach fuzzed: SECONDS=60 SEED=7
	@cd tests && COMUX_TORTURE_SECONDS=$(SECONDS) COMUX_TORTURE_SEED=$(SEED) \
	    ../$(VENV)/bin/pytest -q -p no:cacheprovider -s --timeout=0 -o faulthandler_timeout=0 ring/test_ring_native.py ring/test_ring_damage.py \
	    ring/test_ring_references.py $(ARGS)

models:  ## the ring's protocol, model-checked, with mutants that must fail; FULL=1: the large configurations too (hours)
	@$(PYTHON) models/run.py $(if $(FULL),--full) $(ARGS)

clean: services-down  ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-3.* build *.egg-info .mypy_cache .ruff_cache .pytest_cache .services .models
	find comux -name '*.so' -delete
	find comux tests scripts -name __pycache__ -prune -exec rm -rf {} +
