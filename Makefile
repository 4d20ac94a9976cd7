# make demo    one request traced end to end, on this machine
# make test    the tests
# make lint    format, clippy, ruff, types
# make bench   what a span costs; bench-vllm: what the hooks cost a real vLLM;
#              bench-nginx: what the module costs nginx; bench-offline: how fast logs are converted
# make test-vllm  the vLLM plugin in a real prefill/decode pair
# make chaos   a million spans through outages of every kind; outage: an hour without a
#              Collector; interpreters: the tests on every CPython that can be had; miri:
#              the queue's tests under Rust's interpreter, which sees undefined behaviour
# make module  the nginx module; wheel: the Python wheel, with MANYLINUX=1 for older
#              systems than this one too; command: the command

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: all demo test test-vllm lint bench bench-nginx bench-vllm bench-offline chaos outage interpreters \
    miri module wheel command \
    example fmt clean \
    test-rust test-python collector

T := target
VENV := $(T)/venv
PYTHON := $(VENV)/bin/python
MODULE := $(T)/nginx/ngx_http_omnitrace_module.so
COMMAND := $(T)/release/omnitrace

# The configured nginx source tree that the module is built for: Debian's own,
# unless NGINX_SOURCE_DIR and NGINX_BUILD_DIR name another.
export NGINX_SOURCE_DIR ?= /usr/share/nginx/src
export NGINX_BUILD_DIR ?= $(CURDIR)/$(T)/nginx-debian

all: lint test

demo: $(T)/.packages command module $(T)/.wheel
	@.ci/packages browser || echo "no browser: the demo makes no picture" >&2
	@$(PYTHON) examples/demo/demo.py $(if $(KEEP),--keep)

# ---- what is built

$(T)/.packages: .ci/packages
	@command -v cargo >/dev/null || { \
	    echo "Rust is missing: install it from https://rustup.rs, then run make again" >&2; exit 1; }
	.ci/packages build
	@mkdir -p $(T) && touch $@

$(T)/nginx-debian/Makefile: $(T)/.packages
	@cd $(NGINX_SOURCE_DIR) && . ./conf_flags && \
	    ./configure "$${NGX_CONF_FLAGS[@]}" --builddir=$(CURDIR)/$(T)/nginx-debian \
	    > $(CURDIR)/$(T)/nginx-configure.log || { tail -5 $(CURDIR)/$(T)/nginx-configure.log >&2; exit 1; }

module: $(if $(findstring $(CURDIR),$(NGINX_BUILD_DIR)),$(T)/nginx-debian/Makefile)
	cargo build --locked --release -p ngx-http-omnitrace-module
	@mkdir -p $(T)/nginx
	@install -m 644 $(T)/release/libngx_http_omnitrace_module.so $(MODULE)

command: $(T)/.packages
	cargo build --locked --release -p omnitrace-cli

example: $(T)/.packages
	cargo build --locked --release -p omnitrace-example-axum

$(T)/.venv: tests/requirements.txt examples/vllm/requirements.txt
	@mkdir -p $(T)
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check \
	    -r tests/requirements.txt -r examples/vllm/requirements.txt
	@touch $@

# What is built with this machine's C library does not run with an older one; zig brings
# along one of 2014.
MANYLINUX ?=
PORTABLE := --zig --compatibility manylinux2014
BUILD_WHEEL = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" maturin build --locked --release -q \
    -m py-bindings/Cargo.toml

wheel: $(T)/.packages $(T)/.venv $(if $(MANYLINUX),$(T)/.zig)
	@rm -rf $(T)/wheels
	$(BUILD_WHEEL) $(if $(MANYLINUX),$(PORTABLE)) -o $(T)/wheels

$(T)/.zig: $(T)/.venv tests/interpreters/requirements.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check -r tests/interpreters/requirements.txt
	@touch $@

$(T)/.wheel: wheel
	@$(VENV)/bin/pip install -q --disable-pip-version-check --force-reinstall --no-deps $(T)/wheels/*.whl

# ---- checks

lint: $(T)/.packages $(T)/.venv $(T)/nginx-debian/Makefile
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@# Each folder is a program of its own: their conftest modules share a name.
	$(VENV)/bin/mypy examples/demo/*.py
	$(VENV)/bin/mypy -p standin
	$(VENV)/bin/mypy examples/vllm/*.py
	$(VENV)/bin/mypy -p omnitrace.vllm
	for folder in tests/*/; do if compgen -G "$$folder*.py" >/dev/null; then \
	    $(VENV)/bin/mypy $$folder*.py; fi; done

fmt:
	cargo fmt --all
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

test: test-rust test-python

test-rust: $(T)/.packages
	cargo test --locked

# A real Collector where Go can build one; the tests take rotel otherwise.
collector:
	@if command -v go >/dev/null; then tests/collector/build.sh; fi

test-python: $(T)/.packages command example module $(T)/.wheel collector
	env -u OMNITRACE_TEST_VLLM $(VENV)/bin/pytest -q tests

bench: $(T)/.wheel
	@$(VENV)/bin/pip install -q --disable-pip-version-check -r tests/bench/requirements.txt
	cargo bench --locked -p omnitrace
	$(PYTHON) tests/bench/python.py

bench-nginx: module $(T)/.venv
	@.ci/packages wrk
	PYTHONPATH=tests/nginx $(PYTHON) tests/bench/nginx.py

# With what test-vllm has installed.
bench-vllm: $(T)/.packages command $(T)/.wheel collector
	@$(VENV)/bin/pip install -q --disable-pip-version-check -r tests/vllm/requirements.txt
	$(PYTHON) tests/vllm/prepare.py $(T)/wheels/*.whl 0.32.0
	PYTHONPATH=examples/demo:tests/end_to_end $(PYTHON) tests/vllm/cost.py

bench-offline: $(T)/.packages command
	python3 tests/offline/bench.py $(COMMAND) $(T)/bench/offline.md

chaos: $(T)/.packages command $(T)/.wheel collector
	@[ -x $(T)/peers/otelcol ] || { echo "make chaos builds the Collector and needs Go" >&2; exit 1; }
	CHAOS_SPANS=$${CHAOS_SPANS:-1000000} CHAOS_OUTAGES=$${CHAOS_OUTAGES:-24} \
	    $(VENV)/bin/pytest -q tests/chaos/test_chaos.py

# Downloads some gigabytes the first time, for each version in OMNITRACE_VLLM_VERSIONS;
# takes about ten minutes.
test-vllm: $(T)/.packages command module $(T)/.wheel collector
	@$(VENV)/bin/pip install -q --disable-pip-version-check -r tests/vllm/requirements.txt
	$(VENV)/bin/python tests/vllm/prepare.py $(T)/wheels/*.whl $${OMNITRACE_VLLM_VERSIONS:-0.32.0}
	OMNITRACE_TEST_VLLM=1 $(VENV)/bin/pytest -q tests/vllm

outage: $(T)/.wheel
	OUTAGE_SPANS=$${OUTAGE_SPANS:-72000000} $(VENV)/bin/pytest -q tests/chaos/test_outage.py

interpreters: $(T)/.packages $(T)/.venv $(T)/.zig command
	@rm -rf $(T)/interpreters/wheel
	$(BUILD_WHEEL) $(PORTABLE) -o $(T)/interpreters/wheel
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" python tests/interpreters/interpreters.py $(T)/interpreters/wheel/*.whl

miri:
	@cargo +nightly miri --version >/dev/null 2>&1 || { \
	    echo "Miri is missing: rustup toolchain install nightly --component miri" >&2; exit 1; }
	cargo +nightly miri test --locked -p omnitrace --lib -- queue:: key::

clean:
	rm -rf $(T)
