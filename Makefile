# make demo    one request traced end to end, on this machine
# make test    the tests
# make lint    format, clippy, ruff, types
# make bench   what a span costs; bench-vllm: what the hooks cost a real vLLM;
#              bench-nginx: what the module costs nginx; bench-offline: how fast logs are converted
# make test-vllm  the vLLM plugin in a real prefill/decode pair
# make chaos   a million spans through outages of every kind; outage: an hour without a
#              Collector; interpreters: the tests on every CPython that can be had; miri:
#              the queue's tests under Rust's interpreter, which sees undefined behaviour
# make module  the nginx module, with NGINX=/path/to/nginx-source for another nginx than
#              Debian's; vendored: it and nginx 1.28; deb: the module as a Debian package
# make test-vendored  the module's tests on nginx 1.28; reloads: a hundred under load;
#              valgrind: a load under valgrind, on both; asan: two million requests under
#              AddressSanitizer, on both; fuzz: the readers of foreign bytes
# make wheel   the Python wheel; with MANYLINUX=1 for older systems than this one too, with
#              PGO=1 optimized by a profile, as it is released; command: the command

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: all demo test test-vllm lint bench bench-nginx bench-vllm bench-offline chaos outage interpreters \
    miri profile module vendored deb test-vendored reloads valgrind asan fuzz wheel command \
    example fmt clean \
    test-rust test-python collector

T := target
VENV := $(T)/venv
PYTHON := $(VENV)/bin/python
MODULE := $(T)/nginx/ngx_http_omnitrace_module.so
CARGO_TARGET_DIR ?= $(T)
COMMAND := $(T)/release/omnitrace

# The nginx source tree that the module is built for, and where it is configured: Debian's
# own, unless NGINX names another, or NGINX_SOURCE_DIR and NGINX_BUILD_DIR do.
ifdef NGINX
NGINX_VERSION := $(shell sed -n 's/.*define NGINX_VERSION *"\(.*\)"/\1/p' $(NGINX)/src/core/nginx.h)
ifeq ($(NGINX_VERSION),)
$(error $(NGINX) is no source of nginx: it has no src/core/nginx.h)
endif
NGINX_TREE := $(CURDIR)/$(T)/nginx-$(NGINX_VERSION)
MODULE := $(T)/nginx-$(NGINX_VERSION)/ngx_http_omnitrace_module.so
NGINX_SOURCE_DIR := $(abspath $(NGINX))
# One that is configured already is taken as it is.
NGINX_BUILD_DIR := $(if $(wildcard $(NGINX)/objs/ngx_auto_config.h),$(NGINX_SOURCE_DIR),$(NGINX_TREE))/objs
endif
export NGINX_SOURCE_DIR ?= /usr/share/nginx/src
export NGINX_BUILD_DIR ?= $(CURDIR)/$(T)/nginx-debian
VENDORED := $(T)/nginx-vendored

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

ifdef NGINX
# As the nginx on the PATH was, but for modules whose source is not here. A release has its
# configure at the top, a checkout under auto.
$(NGINX_TREE)/objs/Makefile:
	@mkdir -p $(NGINX_TREE)
	@arguments=$$(nginx -V 2>&1 | sed -n 's/^configure arguments: //p' | \
	    sed -E 's/--add-(dynamic-)?module=[^ ]*//g') && cd $(NGINX_SOURCE_DIR) && \
	    eval "$$(ls ./configure auto/configure 2>/dev/null | head -1)" \
	    "$${arguments:---with-compat} --builddir=$(NGINX_TREE)/objs" \
	    > $(NGINX_TREE)/configure.log || { tail -5 $(NGINX_TREE)/configure.log >&2; exit 1; }
endif

module: $(if $(findstring $(CURDIR),$(NGINX_BUILD_DIR)),$(patsubst $(CURDIR)/$(T)/nginx-debian/%,$(T)/nginx-debian/%,$(NGINX_BUILD_DIR)/Makefile))
	cargo build --locked --release -p ngx-http-omnitrace-module
	@mkdir -p $(dir $(MODULE))
	@install -m 644 $(CARGO_TARGET_DIR)/release/libngx_http_omnitrace_module.so $(MODULE)

# The nginx that the crate nginx-sys brings along, and the module for it.
vendored: $(T)/.packages
	env -u NGINX_SOURCE_DIR -u NGINX_BUILD_DIR \
	    cargo build --locked --release -p ngx-http-omnitrace-module --features vendored
	@mkdir -p $(VENDORED)
	@install -m 644 $(CARGO_TARGET_DIR)/release/libngx_http_omnitrace_module.so $(VENDORED)
	@install -m 755 "$$(ls -t $(CARGO_TARGET_DIR)/release/build/nginx-sys-*/out/objs/nginx | head -1)" \
	    $(VENDORED)/nginx

deb: module
	nginx-module/deb.sh $(MODULE) $$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml) $(T)/deb

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
# A tenth to a fifth less CPU time for twice the build. What zig links cannot be profiled, so
# the profile is taken of a wheel for this machine, and the target is named for both to be the
# same to it.
PGO ?=
PROFILE := $(CURDIR)/$(T)/pgo/omnitrace.profdata
PROFILED = $(if $(PGO),--target "$$(rustc --print host-tuple)")
PORTABLE := --zig --compatibility manylinux2014
MATURIN = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" maturin build --locked --release -q
BUILD_WHEEL = $(MATURIN) -m py-bindings/Cargo.toml

# The command is in the wheel as a script, as the wheel format has them: the folder's name
# is the format's.
WHEEL_DATA := py-bindings/omnitrace_sdk-$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml).data

wheel: $(T)/.packages $(T)/.venv $(if $(MANYLINUX),$(T)/.zig,command) $(if $(PGO),profile)
	@rm -rf $(T)/wheels py-bindings/omnitrace_sdk-*.data
ifdef MANYLINUX
	$(MATURIN) -m sdk/cli/Cargo.toml $(PORTABLE) -o $(T)/wheels/command
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps --target $(T)/wheels/command \
	    $(T)/wheels/command/*.whl
	@install -D $(T)/wheels/command/bin/omnitrace $(WHEEL_DATA)/scripts/omnitrace
	@rm -r $(T)/wheels/command
else
	@install -D $(COMMAND) $(WHEEL_DATA)/scripts/omnitrace
endif
	$(if $(PGO),RUSTFLAGS="-Cprofile-use=$(PROFILE)") \
	    $(BUILD_WHEEL) $(if $(MANYLINUX),$(PORTABLE)) $(PROFILED) -o $(T)/wheels
	@rm -r $(WHEEL_DATA)

profile: PGO := 1
profile: $(T)/.packages $(T)/.venv
	@tools=$$(rustc --print sysroot)/lib/rustlib/$$(rustc --print host-tuple)/bin; \
	[ -x "$$tools/llvm-profdata" ] || { \
	    echo "a profile needs LLVM's tools: rustup component add llvm-tools" >&2; exit 1; }; \
	set -x; rm -rf $(dir $(PROFILE)); \
	RUSTFLAGS="-Cprofile-generate=$(dir $(PROFILE))raw" $(BUILD_WHEEL) $(PROFILED) -o $(dir $(PROFILE)); \
	$(VENV)/bin/pip install -q --no-deps --target $(dir $(PROFILE))site $(dir $(PROFILE))*.whl; \
	PYTHONPATH=$(dir $(PROFILE))site $(PYTHON) tests/bench/training.py; \
	"$$tools/llvm-profdata" merge -o $(PROFILE) $(dir $(PROFILE))raw

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

ON_VENDORED = OMNITRACE_NGINX=$(CURDIR)/$(VENDORED)/nginx \
    OMNITRACE_NGINX_MODULE=$(CURDIR)/$(VENDORED)/libngx_http_omnitrace_module.so

test-vendored: $(T)/.venv module vendored
	$(ON_VENDORED) $(VENV)/bin/pytest -q tests/nginx

# Some ten minutes.
reloads: $(T)/.venv module
	RELOADS=$${RELOADS:-100} $(VENV)/bin/pytest -q tests/nginx/test_nginx_reloads.py

# Programs that are no tests find the tests' helpers so.
NGINX_PROGRAM := PYTHONPATH=examples/demo:tests/nginx $(PYTHON)

# REQUESTS are those of each nginx; two million take hours.
valgrind: $(T)/.venv module vendored
	@.ci/packages wrk valgrind
	$(NGINX_PROGRAM) tests/nginx/memory.py valgrind $${REQUESTS:-20000}
	$(ON_VENDORED) $(NGINX_PROGRAM) tests/nginx/memory.py valgrind $${REQUESTS:-20000}

# REQUESTS are those of each nginx; the default takes about half an hour. Both are built with
# Rust's nightly, which brings the sanitizer's runtime, and clang.
asan: $(T)/.packages $(T)/.venv
	@rustc +nightly --version >/dev/null 2>&1 || { \
	    echo "Rust's nightly is missing: rustup toolchain install nightly" >&2; exit 1; }
	@.ci/packages wrk dpkg-dev
	for version in debian vendored; do \
	    tests/nginx/asan.sh $$version $(T)/asan/$$version && \
	    OMNITRACE_NGINX=$(CURDIR)/$(T)/asan/$$version/objs/nginx \
	    OMNITRACE_NGINX_MODULE=$(CURDIR)/$(T)/asan/$$version/libngx_http_omnitrace_module.so \
	    $(NGINX_PROGRAM) tests/nginx/memory.py asan $${REQUESTS:-2000000} || exit 1; done

# Ten minutes for each target, or FUZZ_SECONDS; what is new goes beside the corpus. The converter's
# threads may still be ending when leaks are looked for.
fuzz:
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { \
	    echo "cargo fuzz is missing: rustup toolchain install nightly && cargo install cargo-fuzz" >&2; exit 1; }
	for crate in sdk/core sdk/offline; do for target in $$(cd $$crate && cargo +nightly fuzz list); do \
	    found=$(CURDIR)/$(T)/fuzz/$$target; mkdir -p $$found; \
	    (cd $$crate && cargo +nightly fuzz run $$target $$found fuzz/corpus/$$target -- \
	        -max_total_time=$${FUZZ_SECONDS:-600} $$([ $$crate = sdk/core ] || echo -detect_leaks=0)); \
	done; done

# The wheel as it is released.
bench: PGO := 1
bench: profile $(T)/.wheel
	@$(VENV)/bin/pip install -q --disable-pip-version-check -r tests/bench/requirements.txt
	cargo bench --locked -p omnitrace
	$(PYTHON) tests/bench/python.py

bench-nginx: module $(T)/.venv
	@.ci/packages wrk
	$(NGINX_PROGRAM) tests/bench/nginx.py

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
	rm -rf $(T) py-bindings/omnitrace_sdk-*.data
