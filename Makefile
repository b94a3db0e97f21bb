# The verbs of this tree. `sudo make demo` and `sudo make test` are the two to start with; both install what is missing.
# Nothing here calls sudo for root, who may have none.

.PHONY: help demo demo-down test lint unit units conformance scenarios soak bench bench-control bench-store fuzz audit build release install uninstall tools forky-root
.DEFAULT_GOAL := help

# Root's PATH lacks these under `su`.
export PATH := $(PATH):/usr/sbin:/sbin

CARGO := integration/cargo.sh
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

# Where `make install` puts things; DESTDIR goes before all of them.
PREFIX ?= /usr/local
UNITDIR ?= /etc/systemd/system

# What keeps the store: `etcd`, `etcd-forky`, which is a newer one, or `embedded`, which is `fland store`. By default the
# demo takes what needs no package, and the scenarios the machine's etcd.
STORE ?=

# The two servers that the conformance suite compares, `ONE,OTHER`: each is etcd, etcd-forky, embedded or the URL of one
# that runs; by default the embedded store with either etcd. And what its random calls are: a seed that it printed sends
# them again.
CONFORMANCE_PAIR ?=
CONFORMANCE_SEED ?=

# Where the root of Debian forky is that the tests keep for their next run: in /var/cache/flan if this is empty.
FLAN_FORKY_ROOT ?=

# Scenarios at a time. They wait more than they compute.
SCENARIO_THREADS ?= 4

# What the story of chance damages: a seed that it printed lets it do so again.
DAMAGE_SEED ?=

# How long the soak's traffic runs, and what its hosts do by chance: a seed that a soak printed lets them do it again.
SOAK_SECONDS ?= 600
SOAK_SEED ?=

# How long each fuzz target runs.
FUZZ_SECONDS ?= 30

# The path of what a `cargo ... --message-format=json` has built, by its name.
path_of = sed -n 's|.*"executable":"\([^"]*/$(1)\(-[0-9a-f]*\)\{0,1\}\)".*|\1|p' | tail -n 1

help:
	@echo 'As root, leave out sudo.'
	@echo 'sudo make demo        two Docker hosts in network namespaces; KEEP=1 leaves them up, STORE=etcd takes etcd'
	@echo 'sudo make demo-down   remove a demo that was left up'
	@echo 'sudo make test        everything: lint, unit tests, systemd units, conformance, scenarios'
	@echo '     make lint        format, clippy, rustdoc'
	@echo '     make unit        the tests that need no root, etcd or network'
	@echo 'sudo make units       systemd-analyze verify'
	@echo 'sudo make conformance the embedded store against real etcd, of two versions, call by call'
	@echo 'sudo make scenarios   whole hosts, with real etcd and Docker; STORE=embedded or etcd-forky takes another store'
	@echo 'sudo make soak        minutes of traffic over udp while hosts come and go: losses, leaks; SOAK_SECONDS=600'
	@echo 'sudo make bench       speed of the data paths between two hosts, as tables; ARGS=--help for what can be chosen'
	@echo 'sudo make bench-control  how fast one fland follows 100 to 50000 leases, and what it costs; ARGS=--help'
	@echo '     make bench-store  the embedded store beside a real etcd; ARGS=--help'
	@echo '     make fuzz        bytes from outside against the rules; FUZZ_SECONDS=30 for each target'
	@echo '     make release     fland and flanctl as they are installed'
	@echo 'sudo make install     fland and flanctl to $(PREFIX)/bin, units to $(UNITDIR)'
	@echo 'sudo make uninstall   removes what make install put there; before it: flanctl leave'
	@echo 'sudo make forky-root  Docker and etcd of Debian forky, which the tests use: a minute, and kept in /var/cache/flan'
	@echo '     make audit       licences, bans and sources of dependencies (cargo-deny)'

demo: WITHOUT_ETCD := $(if $(filter etcd,$(STORE)),,--without-etcd)
demo: build
	@demo=$$($(CARGO) build -q -p flan-integration --bin demo --message-format=json | $(call path_of,demo)); \
	echo; $(AS_ROOT) "$$demo" $(if $(KEEP),--keep) $(if $(STORE),--store $(STORE))

demo-down: WITHOUT_ETCD := --without-etcd
demo-down: tools
	@$(CARGO) build -q --locked -p flan-integration --bin demo
	@demo=$$($(CARGO) build -q -p flan-integration --bin demo --message-format=json | $(call path_of,demo)); \
	$(AS_ROOT) "$$demo" down

# The random calls are the same each time here, and others each time that `make conformance` is run by itself.
test: forky-root
	@$(MAKE) --no-print-directory lint unit units
	@$(MAKE) --no-print-directory conformance CONFORMANCE_SEED=$(or $(CONFORMANCE_SEED),906912)
	@$(MAKE) --no-print-directory scenarios

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked

unit:
	$(CARGO) test --locked
	$(CARGO) test --locked -p flan-integration --lib --bins

units: build
	$(AS_ROOT) deploy/verify.sh

conformance: build
	$(CARGO) test --locked -p flan-integration --test conformance --no-run
	@conformance=$$($(CARGO) test -q --locked -p flan-integration --test conformance --no-run --message-format=json \
		| $(call path_of,conformance)); \
	$(AS_ROOT) env RUST_LIB_BACKTRACE=0 FLAN_FORKY_ROOT=$(FLAN_FORKY_ROOT) \
		FLAN_CONFORMANCE_PAIR=$(CONFORMANCE_PAIR) FLAN_CONFORMANCE_SEED=$(CONFORMANCE_SEED) \
		"$$conformance" --test-threads=$(SCENARIO_THREADS)

scenarios: build
	$(CARGO) test --locked -p flan-integration --test scenarios --no-run
	@scenarios=$$($(CARGO) test -q --locked -p flan-integration --test scenarios --no-run --message-format=json \
		| $(call path_of,scenarios)); \
	$(AS_ROOT) env RUST_LIB_BACKTRACE=0 FLAN_FORKY_ROOT=$(FLAN_FORKY_ROOT) STORE=$(STORE) \
		FLAN_DAMAGE_SEED=$(DAMAGE_SEED) "$$scenarios" --test-threads=$(SCENARIO_THREADS)

# Left out of the scenarios, for it takes minutes.
soak: build
	$(CARGO) test --locked -p flan-integration --test scenarios --no-run
	@scenarios=$$($(CARGO) test -q --locked -p flan-integration --test scenarios --no-run --message-format=json \
		| $(call path_of,scenarios)); \
	$(AS_ROOT) env RUST_LIB_BACKTRACE=0 FLAN_SOAK_SECONDS=$(SOAK_SECONDS) FLAN_SOAK_SEED=$(SOAK_SEED) \
		"$$scenarios" soak:: --ignored --nocapture

bench: tools release
	@$(CARGO) build --release --locked -p flan-integration --bin bench
	@bench=$$($(CARGO) build -q --release --locked -p flan-integration --bin bench --message-format=json \
		| $(call path_of,bench)); \
	$(AS_ROOT) "$$bench" $(ARGS)

bench-control: tools release
	@$(CARGO) build --release --locked -p flan-integration --bin bench-control
	@bench=$$($(CARGO) build -q --release --locked -p flan-integration --bin bench-control --message-format=json \
		| $(call path_of,bench-control)); \
	$(AS_ROOT) "$$bench" $(ARGS)

bench-store: tools release
	@$(CARGO) build --release --locked -p flan-integration --bin bench-store
	@bench=$$($(CARGO) build -q --release --locked -p flan-integration --bin bench-store --message-format=json \
		| $(call path_of,bench-store)); \
	"$$bench" $(ARGS)

# Finds inputs that break a rule: see fuzz/run.sh, which runs one target or one input as well.
fuzz:
	@FUZZ_SECONDS=$(FUZZ_SECONDS) fuzz/run.sh

# What is installed needs no more than what builds it.
release:
	@integration/install-tools.sh --to-build
	$(CARGO) build --release --locked --bins

# Builds nothing: what is installed was built by an ordinary user.
install:
	@test -x target/release/fland || { echo 'there is nothing to install yet; first: make release' >&2; exit 1; }
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin target/release/fland target/release/flanctl
	install -D -m 644 -t $(DESTDIR)$(UNITDIR) deploy/fland.service deploy/fland-store.service
	install -D -m 644 -t $(DESTDIR)$(UNITDIR)/docker.service.d deploy/docker.service.d/flan.conf

# A directory that others use as well is not empty, and stays.
uninstall:
	@test -n '$(DESTDIR)' || for unit in fland fland-store; do \
		case "$$(systemctl show --property ActiveState --value $$unit 2>/dev/null)" in \
			''|inactive|failed) systemctl is-enabled --quiet $$unit 2>/dev/null || continue ;; \
		esac; \
		echo "$$unit runs or is enabled; first: systemctl disable --now $$unit" >&2; exit 1; \
	done
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,fland flanctl)
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,fland.service fland-store.service docker.service.d/flan.conf)
	@rmdir $(DESTDIR)$(UNITDIR)/docker.service.d 2>/dev/null || true
	@echo 'On a host that has neither left nor been handed over to flannel, the lease, devices, routes and rules stay.'
	@echo 'To remove them: target/release/flanctl leave'
	@echo 'Then: systemctl daemon-reload'

audit:
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo 'make audit needs cargo-deny: cargo install --locked cargo-deny' >&2; exit 1; }
	$(CARGO) deny check licenses bans sources

build: tools
	$(CARGO) build --locked --workspace --bins

tools:
	@integration/install-tools.sh $(WITHOUT_ETCD)

# Docker and etcd of the next Debian. The tests that need them make them too, which takes a minute; `make test` does so
# before anything else. Kept: to get those that it has today, remove the directory.
forky-root: tools
	@$(AS_ROOT) env FLAN_FORKY_ROOT=$(FLAN_FORKY_ROOT) integration/forky-root.sh >/dev/null
