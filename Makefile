# comux. `make demo` and `make test` need nothing but Python 3.11+ with its headers and a C compiler.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
SECONDS ?= 60
SEED ?=
SERVER ?= kafka
RUN := $(VENV)/bin/python
# Three at a time, also on two cores: half of the tests wait for something, and what only works on an idle machine is wrong.
PYTEST := -q -p no:cacheprovider -n 3 --dist worksteal
# Tests with servers wait most of the time: for brokers to start, to be missed, to be back.
WITH_SERVERS := -q -p no:cacheprovider -n 4 --dist worksteal
export PYTHONDONTWRITEBYTECODE ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-here test-services test-others services-up services-down check bench torture clean setup dev

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

test: test-here test-services test-others  ## every test, on every interpreter found; with real servers where they can start

test-here: dev
	@cd tests && COMUX_TEST_INSTALLED=1 ../$(VENV)/bin/pytest $(PYTEST) -m "not torture and not services" $(ARGS)

test-services: dev  ## the tests that need real servers: Java 17, Maven, Go, else they say that they were skipped
	@for server in kafka mongo mongo-streams; do $(RUN) scripts/services fetch $$server || [ $$? = 3 ] || exit 1; done
	@cd tests && COMUX_TEST_INSTALLED=1 ../$(VENV)/bin/pytest $(WITH_SERVERS) -m "services and not torture" $(ARGS)

test-others:
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	scripts/other-pythons $$version | while read -r v path; do \
	    (scripts/setup-venv $$path $(VENV)-$$v requirements-dev.txt && cd tests && \
	        COMUX_TEST_INSTALLED=1 ../$(VENV)-$$v/bin/pytest $(PYTEST) -m "core and not torture and not services") </dev/null || exit 1; \
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

bench: dev  ## ring and video beside their rivals, in one run
	@$(RUN) benchmarks/run.py $(ARGS)

torture: dev  ## the long tests and the ring's torture: make torture SECONDS=600 SEED=7
	@cd tests && COMUX_TEST_INSTALLED=1 COMUX_TORTURE_SECONDS=$(SECONDS) COMUX_TORTURE_SEED=$(SEED) \
	    ../$(VENV)/bin/pytest -q -p no:cacheprovider -s -m torture --timeout=0 $(ARGS)

clean: services-down  ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-3.* build *.egg-info .mypy_cache .ruff_cache .pytest_cache .services
	find comux -name '*.so' -delete
