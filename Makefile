# Requires python3 (3.11 or newer), pip and make. Everything else is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
STUBS := clients/python
TEST_PROCESSES ?= 3
PROTOS = $(shell cd protos && find pulsa -name '*.proto' | sort)
SERVICES = $(filter %_service.proto,$(PROTOS))
TYPESCRIPT := clients/typescript
TYPESCRIPT_STUBS := $(TYPESCRIPT)/src/gen
NODE := $(shell command -v npm >/dev/null && node --print 'parseInt(process.versions.node) >= 20 || ""')

.DEFAULT_GOAL := help
.PHONY: help setup run demo test test-cluster test-faults test-mail test-alerts test-deployment container test-container test-browser screenshots test-typescript test-callers generate stubs \
	typescript-stubs verify-generate verify-typescript-stubs no-node format lint types hops test-docs wheels postgres check lock bench \
	bench-quick bench-batches bench-peers bench-compare bench-check bench-clients bench-export soak bench-publish fuzz clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/ready  ## Create .venv; every other target does this when needed

.venv/ready: requirements/development.txt
	@echo "Setting up .venv (about half a minute) …"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv --clear --without-pip .venv
	@{ $(PYTHON) -m pip --python $(RUN) install --disable-pip-version-check --progress-bar off --require-hashes \
		--requirement requirements/development.txt || echo FAILED; } | awk ' \
		/^Collecting/ { printf "\r  %d packages found", ++found; fflush() } \
		/^Installing/ { printf ", installing …"; fflush() } \
		/^Successfully/ { print " done" } \
		/^FAILED/ { exit 1 }'
	@$(RUN) -c 'import site, pathlib; root = pathlib.Path.cwd(); \
		pathlib.Path(site.getsitepackages()[0], "pulsa.pth").write_text(f"{root}\n{root}/$(STUBS)\n")'
	@touch $@

run: .venv/ready  ## Run the server with stand-ins of its providers, without configuration; Ctrl-C stops it
	@$(RUN) -m server dev

demo: .venv/ready  ## Run an example: one top-up and three sends; starts what it needs
	@$(RUN) -m server demo

test: .venv/ready  ## Run the test suite
	$(RUN) -m pytest --numprocesses=$(TEST_PROCESSES) --dist=worksteal $(ARGS)

test-cluster: .venv/ready  ## Run the tests on a Citus cluster, of whose coordinator PULSA_TEST_CLUSTER_URL is the URL
	@: $${PULSA_TEST_CLUSTER_URL:?is needed: the URL of a superuser at the coordinator of a Citus cluster}
	env -u PULSA_TEST_CLUSTER_URL TEST_CLUSTER_URL=$(PULSA_TEST_CLUSTER_URL) $(RUN) -m pytest --numprocesses=$(TEST_PROCESSES) --dist=worksteal \
		-m 'not plain_postgres' $(or $(ARGS),tests/cluster/*.py tests/integration tests/acceptance tests/faults)

generate: .venv/ready stubs $(if $(NODE),typescript-stubs,no-node)  ## Generate the stubs from protos/ and the tables in docs/ from the code
	@$(RUN) -m server reference README.md docs/*.md

stubs: .venv/ready
	@mkdir -p $(STUBS)/pulsa
	@find $(STUBS)/pulsa -name '*_pb2*' -delete
	$(RUN) -m grpc_tools.protoc --proto_path=protos --plugin=$(BIN)/protoc-gen-mypy \
		--python_out=$(STUBS) --mypy_out=quiet:$(STUBS) $(PROTOS)
	$(RUN) -m grpc_tools.protoc --proto_path=protos --plugin=$(BIN)/protoc-gen-mypy_grpc \
		--grpc_python_out=$(STUBS) --mypy_grpc_out=quiet:$(STUBS) $(SERVICES)

typescript-stubs: .venv/ready $(TYPESCRIPT)/node_modules/ready
	@rm -rf $(TYPESCRIPT_STUBS) && mkdir -p $(TYPESCRIPT_STUBS)
	$(RUN) -m grpc_tools.protoc --proto_path=protos --proto_path=$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		--plugin=$(TYPESCRIPT)/node_modules/.bin/protoc-gen-es --es_out=$(TYPESCRIPT_STUBS) \
		--es_opt=target=ts,import_extension=js $(PROTOS) google/rpc/error_details.proto

verify-typescript-stubs: .venv/ready $(TYPESCRIPT)/node_modules/tried
	@if [ -e $(TYPESCRIPT)/node_modules/ready ]; then rm -rf build/typescript && \
		$(MAKE) --no-print-directory typescript-stubs TYPESCRIPT_STUBS=build/typescript >/dev/null && \
		{ diff -rq build/typescript $(TYPESCRIPT_STUBS) || { echo "The TypeScript stubs are not current: run make generate" >&2; exit 1; }; }; fi

no-node:
	@echo "Left out, as Node 20 or newer with npm is not installed: the TypeScript client, its stubs and its tests" >&2

$(TYPESCRIPT)/node_modules/ready: $(TYPESCRIPT)/package-lock.json
	@cd $(TYPESCRIPT) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(TYPESCRIPT)/node_modules/tried: $(TYPESCRIPT)/package-lock.json
	@$(MAKE) --no-print-directory $(TYPESCRIPT)/node_modules/ready || \
		echo "Left out, as npm could not install its packages: the TypeScript client, its stubs and its tests" >&2
	@mkdir -p $(@D) && touch $@

verify-generate: .venv/ready
	@rm -rf build/stubs
	@$(MAKE) --no-print-directory stubs STUBS=build/stubs >/dev/null
	@for tree in build/stubs $(STUBS); do \
		(cd $$tree && find pulsa -name '*_pb2*.py*' -not -path '*/__pycache__/*' | sort | xargs cksum) > build/$$(basename $$tree).sums; \
	done; cmp --silent build/stubs.sums build/$(notdir $(STUBS)).sums || \
		{ echo "The stubs are not current: run make generate" >&2; exit 1; }

format: .venv/ready  ## Format Python and protos
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/buf format --write

lint: .venv/ready verify-generate $(if $(NODE),verify-typescript-stubs,no-node)  ## Check style, imports between layers, the protos and the generated stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@if tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); then \
		echo "$(BIN)/buf breaking --against tag $$tag"; $(BIN)/buf breaking --against ".git#tag=$$tag"; \
	else echo "buf breaking: skipped, as no release is tagged here, or this clone is too shallow to have its tag"; fi

types: .venv/ready  ## Check types with mypy --strict
	$(BIN)/mypy server tests $(wildcard $(STUBS)/pulsa/*.py)

hops: .venv/ready  ## Count the files and functions that a call passes
	$(RUN) tests/hops.py --check

test-docs: .venv/ready  ## Run every command of README.md and docs/ as written, in a clean clone of HEAD
	@$(RUN) -m tests.docs.run $(ARGS)

MAIL := build/mail

test-mail: .venv/ready $(MAIL)/ready  ## Send through Debian's Postfix, Exim and OpenSMTPD, unpacked into build/; needs apt and root
	$(RUN) -m pytest tests/mail/relays.py $(ARGS)

$(MAIL)/ready:
	@mkdir -p $(MAIL) && cd $(MAIL) && for server in "postfix sasl2-bin libsasl2-modules libsasl2-modules-db" \
		"exim4-daemon-light libidn12" opensmtpd; do \
		apt-get download $$server && for package in $$server; do dpkg -x $${package}_*.deb $${server%% *} || exit 1; done || exit 1; done
	@mv $(MAIL)/exim4-daemon-light $(MAIL)/exim
	@touch $@

test-alerts: .venv/ready  ## Play the cause and the cure of each alert, with Debian's Prometheus; needs prometheus
	$(RUN) -m pytest --numprocesses=$(TEST_PROCESSES) tests/monitoring/alerts.py $(ARGS)

test-deployment: wheels build/kubernetes/ready  ## Check the systemd units and the Kubernetes manifest, and play the demo by the units; needs systemd and root
	$(RUN) -m pytest tests/deployment/units.py tests/deployment/manifest.py $(ARGS)

# The schemas of Kubernetes.
build/kubernetes/ready: requirements/kubernetes.txt
	@$(PYTHON) -m venv --clear --without-pip build/kubernetes
	@$(PYTHON) -m pip --python build/kubernetes/bin/python install --require-hashes --disable-pip-version-check --quiet \
		--requirement requirements/kubernetes.txt
	@touch $@

container: wheels  ## Build the container image pulsa on the image BASE, with podman and PODMAN_BUILD_FLAGS
	podman $(PODMAN_FLAGS) build --format docker $(PODMAN_BUILD_FLAGS) --build-arg BASE=$(BASE) --file docs/deployment/Containerfile --tag pulsa .

test-container: .venv/ready  ## Play the demo against the image that make container built
	$(RUN) -m pytest tests/deployment/container.py $(ARGS)

test-browser: .venv/ready build/axe/ready  ## Play the story of the billing pages in Debian's Chromium; needs chromium and npm
	$(RUN) -m pytest $(addprefix tests/browser/,story.py access.py sandbox.py) $(ARGS)

# The accessibility checker.
build/axe/ready:
	@command -v npm >/dev/null || { echo "make test-browser needs npm: apt install npm" >&2; exit 1; }
	@mkdir -p $(@D) && npm install --prefix $(@D) --no-audit --no-fund --silent axe-core@4.14.1
	@touch $@

screenshots:  ## Copy the pictures that the last make test-browser took to docs/
	@mkdir -p docs/pictures && cp $(foreach picture,low-en-desk dialog-en-desk dialog-id-phone open-id-desk \
		paid-en-phone-dark paid-id-phone,build/browser/$(picture).webp) docs/pictures/

test-faults: .venv/ready  ## Measure what callers notice of locks, silent hosts, outages and crashes, in about 20 minutes
	@$(RUN) -m tests.faults.figures
	@$(RUN) -m tests.faults.doubles
	@KILL_AT=all $(RUN) -m pytest --quiet tests/faults/test_automatic_top_up_killed.py

wheels: .venv/ready  ## Build the wheels of the server and of the Python client into dist/, reproducibly
	@rm -rf dist build/wheels && mkdir -p build/wheels
	@git -c tar.umask=0022 archive HEAD server clients/python pyproject.toml README.md LICENSE | tar -xp -C build/wheels
	@umask 022 && export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) && for source in clients/python .; do \
		$(PYTHON) -m pip --python $(RUN) wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist build/wheels/$$source \
		|| exit 1; done
	@ls dist

postgres: .venv/ready  ## Run the embedded PostgreSQL alone; its URL is in data/postgres.url
	@$(RUN) -m server postgres

test-typescript: .venv/ready $(if $(NODE),$(TYPESCRIPT)/node_modules/tried,no-node)  ## Test the TypeScript client against the real server; needs Node
	@if [ -e $(TYPESCRIPT)/node_modules/ready ]; then cd $(TYPESCRIPT) && npm test --silent; fi

test-callers: .venv/ready $(if $(NODE),$(TYPESCRIPT)/node_modules/ready,no-node)  ## Call through each gRPC stack and proxy that is installed, and name the others
	@$(if $(NODE),cd $(TYPESCRIPT) && npm run --silent build && npx tsc --project test)
	IDLE_SECONDS=$(IDLE_SECONDS) $(RUN) -m pytest tests/stacks/matrix.py -v -rs $(ARGS)

check: lint types test test-typescript  ## Run lint, types and all tests, as CI does

lock: .venv/ready  ## Resolve pyproject.toml's dependencies into requirements/, with hashes
	$(PYTHON) -m venv --clear build/lock && build/lock/bin/pip install --quiet uv
	build/lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet --upgrade --extra traces pyproject.toml --output-file requirements/server.txt
	build/lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet --upgrade --extra development --extra traces --constraint requirements/server.txt pyproject.toml \
		--output-file requirements/development.txt
	build/lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet --upgrade requirements/plot.in --output-file requirements/plot.txt
	build/lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet --upgrade requirements/kubernetes.in --output-file requirements/kubernetes.txt
	build/lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet --upgrade requirements/peers.in --output-file requirements/peers.txt

bench: .venv/ready build/plot/ready build/peers/ready  ## Measure the server, batches and other ledgers; writes build/bench.{json,svg,png}
	@$(RUN) -m tests.bench.run $(if $(PGLEDGER),--pgledger $(PGLEDGER))
	@build/plot/bin/python tests/bench/plot.py build/bench.json

bench-quick: .venv/ready  ## Measure the server approximately, in under a minute
	@$(RUN) -m tests.bench.run --quick --output build/bench-quick.json

bench-batches: .venv/ready  ## Measure OTPs alone and in batches, in 3 minutes; writes build/batches.json
	@$(RUN) -m tests.bench.batches $(ARGS)

bench-peers: .venv/ready build/peers/ready  ## Measure other ledgers beside OTPs; PGLEDGER=DIR names a checkout of pgledger
	@$(RUN) -m tests.bench.peers $(if $(PGLEDGER),--pgledger $(PGLEDGER)) $(ARGS)

bench-compare: .venv/ready  ## Compare the processor time per call with another commit's: BASE=REF
	@$(RUN) -m tests.bench.compare --base $(BASE) $(ARGS)

bench-check: .venv/ready  ## Fail when a call costs the processor 10 % more than at the last tag
	@$(RUN) -m tests.bench.compare --base $$(git describe --tags --abbrev=0) \
		$(foreach call,send_otp_hot send_otp_spread verify_otp get_balance lone_send_otp,--limit $(call)=1.10) $(ARGS)

bench-export: .venv/ready  ## Export ten million ledger entries beside PostgreSQL's own COPY TO; needs 5 GB of disk
	@$(RUN) -m tests.bench.export $(ARGS)

bench-clients: .venv/ready  ## Measure what the asyncio client adds to bare stubs, and 10,000 calls at once
	@$(RUN) -m tests.bench.clients

soak: .venv/ready build/plot/ready  ## Run 2 hours (MINUTES=120) at half of the maximum with restarts, rotations and failovers
	@$(RUN) -m tests.bench.soak --minutes $(or $(MINUTES),120) $(ARGS)
	@build/plot/bin/python tests/bench/plot.py build/soak.json

bench-publish:  ## Copy the results of the last make bench and make soak to docs/
	@mkdir -p docs && cp $(wildcard build/bench.* build/soak.*) docs/

build/plot/ready build/peers/ready: build/%/ready: requirements/%.txt
	@$(PYTHON) -m venv --clear --without-pip build/$*
	@$(PYTHON) -m pip --python build/$*/bin/python install --require-hashes --disable-pip-version-check --quiet \
		--requirement $<
	@touch $@

# Pass the printed FUZZ_SEED to repeat a run with almost the same inputs.
fuzz: .venv/ready  ## Fuzz the server with 100,000 messages and 20,000 raw requests, for about 15 minutes
	@seed=$${FUZZ_SEED:-$$(date +%s)}; echo "FUZZ_SEED=$$seed"; \
		FUZZ_SEED=$$seed FUZZ_MESSAGES=100000 FUZZ_REQUESTS=20000 FUZZ_ROUNDS=50000 \
		$(RUN) -m pytest --quiet --capture=sys tests/fuzz $(ARGS)

clean:  ## Remove .venv, build/ and caches; data/ of make run stays
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
