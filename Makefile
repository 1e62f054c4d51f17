# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
#
# Stamps keep set-up from running twice: .venv/.base (interpreter, maturin), .venv/.test, .venv/.bench, target/.system.
# A stamp is older than the file that it was made from only when that file has changed.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
EXTRAS  := fastapi,cli
SOURCES := $(wildcard python tests benches examples)

# Versions come from the pins, whoever asks for the package: pip here, or maturin for the extras.
export PIP_CONSTRAINT := $(CURDIR)/requirements/test.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1

CARGO_DENY := target/tools/bin/cargo-deny
STEP       := .ci/step
PIP        := $(BIN)/python -m pip install

.PHONY: help demo build test lint bench soak soak-stores asan loom-mutants pins clean \
        rust-format rust-lint rust-test rust-doctest rust-loom rust-deny python-format python-lint wheel stubtest types verify-types python-test

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

# --- set-up -----------------------------------------------------------------------------------------------------------

$(VENV)/.base: requirements/test.txt
	@.ci/setup $(PYTHON) $(VENV)
	$(PIP) maturin
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.base
	@$(STEP) install-python $(PIP) -r requirements/test.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.test
	$(PIP) -r requirements/bench.txt
	@touch $@

.venv-litellm/.stamp: requirements/litellm.txt
	$(PYTHON) -m venv .venv-litellm
	PIP_CONSTRAINT= .venv-litellm/bin/python -m pip install -r requirements/litellm.txt
	@touch $@

# What tests need beyond Python and Rust; a test whose program is missing says so itself.
target/.system: .ci/system-packages
	@$(STEP) install-system .ci/system-packages
	@mkdir -p target && touch $@

# The released clients that tests drive. npm writes the file last, so it is its own stamp.
NODE_MODULES := tests/js/node_modules/.package-lock.json
$(NODE_MODULES): tests/js/package-lock.json target/.system
	@$(STEP) install-node .ci/node-modules tests/js

# Unoptimised: built in a minute, and fast enough for the few hundred packages it looks at.
$(CARGO_DENY):
	@$(STEP) install-cargo-deny cargo install --quiet --locked --debug cargo-deny@0.20.2 --root target/tools --target-dir target/tools/build
	@rm -rf target/tools/build

# --- what people run --------------------------------------------------------------------------------------------------

build: $(VENV)/.base ## builds the package into .venv; seconds after a change
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --quiet --profile fast --extras $(EXTRAS)

demo: build ## the demo on http://127.0.0.1:8000
	@echo "turnstream: the demo is at http://127.0.0.1:8000 (Ctrl-C ends it)"
	@exec $(BIN)/turnstream demo

test: lint rust-test rust-doctest rust-loom rust-deny wheel stubtest types verify-types python-test ## every test, lint and type check

lint: rust-format rust-lint python-format python-lint ## formats and lints alone

bench: $(VENV)/.bench .venv-litellm/.stamp ## every ratio, against a release build
	rm -rf target/wheels
	$(BIN)/maturin build --quiet --release --out target/wheels
	$(PIP) --force-reinstall --no-deps target/wheels/*.whl
	$(BIN)/python -m benches

soak: build ## ten million events: does anything stay?
	$(BIN)/python -m benches.soak

# The sanitizer is rustc's own, and still behind a nightly flag. `--target` keeps it out of the build scripts.
ASAN_TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
asan: ## the core's tests under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
	  cargo test --quiet --locked -p turnstream-core --lib --tests --target $(ASAN_TARGET)

loom-mutants: ## does each model fail without the line that it guards?
	@.ci/loom-mutants

soak-stores: wheel ## a writer killed 300 times at random moments, and a disk's power cut 3,000 times
	TURNSTREAM_CUTS=600 cargo test --quiet --locked -p turnstream-core --test store -- power
	TURNSTREAM_KILLS=300 $(BIN)/python -m pytest tests/test_stores.py -k killed

pins: ## resolves requirements/*.in anew into exact versions
	@.ci/setup $(PYTHON) target/pins
	PIP_CONSTRAINT= target/pins/bin/python -m pip install uv
	cd requirements && for name in test bench litellm; do \
	  ../target/pins/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	    --custom-compile-command "make pins" $$name.in --output-file $$name.txt || exit 1; \
	done

clean: ## removes what was built, environments included
	cargo clean
	rm -rf $(VENV) .venv-litellm tests/js/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- the steps of `make test`; each leaves target/logs/<step>.log -------------------------------------------------------

# The fuzzers and the benchmarks' contenders are workspaces of their own.
MANIFESTS := Cargo.toml $(wildcard fuzz/Cargo.toml benches/*/Cargo.toml)
rust-format:
	@$(STEP) $@ bash -c 'for manifest; do cargo fmt --all --check --manifest-path "$$manifest" || exit 1; done' - $(MANIFESTS)

rust-lint:
	@$(STEP) $@ cargo clippy --quiet --workspace --all-targets --locked -- -D warnings

# nextest gives each test a process and a timeout, but runs no doc tests.
rust-test: target/.system
ifneq ($(shell command -v cargo-nextest),)
	@$(STEP) $@ cargo nextest run --workspace --locked --status-level slow
else
	@$(STEP) $@ cargo test --quiet --workspace --locked --lib --bins --tests
endif

rust-doctest:
	@$(STEP) $@ cargo test --quiet --workspace --locked --doc

# Every interleaving of a few threads, with at most four preemptions each: 2 s after the build.
rust-loom:
	@RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-4} \
	  $(STEP) $@ cargo test --quiet --locked -p turnstream-core --lib models::

# Not `advisories`: it fetches its database, and a new entry there would fail an unchanged tree.
rust-deny: $(CARGO_DENY)
	@$(STEP) $@ $(CARGO_DENY) --log-level error check bans licenses sources

python-format: $(VENV)/.test
	@$(STEP) $@ $(BIN)/ruff format --check .

python-lint: $(VENV)/.test
	@$(STEP) $@ $(BIN)/ruff check .

# The tests see what a user would install: the wheel, never the source folder.
wheel: $(VENV)/.test
	@rm -rf target/wheels
	@$(STEP) $@ $(BIN)/maturin build --quiet --profile fast --locked --out target/wheels
	@$(STEP) install $(PIP) --force-reinstall --no-deps target/wheels/*.whl

stubtest: wheel
	@$(STEP) $@ $(BIN)/stubtest --concise --mypy-config-file pyproject.toml turnstream._native

types: wheel
	@$(STEP) $@ $(BIN)/mypy --strict $(SOURCES)

# --verifytypes asks the `python` on the PATH for its packages, whatever --pythonpath says.
verify-types: wheel
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(STEP) $@ pyright --verifytypes turnstream --ignoreexternal

python-test: wheel target/.system $(NODE_MODULES)
	@$(STEP) $@ $(BIN)/python -m pytest
