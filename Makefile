# Start with `sudo make demo` and `sudo make test`. Both install missing packages.
# For root, no recipe calls sudo: a machine without sudo works.

.PHONY: help demo demo-down test lint unit units conformance scenarios vm vm-scenarios vm-reboot vm-bare vm-bench soak bench bench-control bench-names bench-networks bench-store fuzz audit build release install uninstall tools forky-root
.DEFAULT_GOAL := help

# Under `su`, root's PATH lacks these directories.
export PATH := $(PATH):/usr/sbin:/sbin

CARGO := integration/cargo.sh
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

# Target directories of `make install`, below DESTDIR.
PREFIX ?= /usr/local
UNITDIR ?= /etc/systemd/system
# Where each shell looks for completions, below share.
COMPLETIONS_OF = bash-completion/completions/$(1) zsh/site-functions/_$(1) fish/vendor_completions.d/$(1).fish
COMPLETIONS := $(call COMPLETIONS_OF,fland) $(call COMPLETIONS_OF,flanctl)

# The store: `etcd`, `etcd-forky` (a newer one) or `embedded` (`fland store`). By default, the demo uses `embedded`, which
# needs no package, and the scenarios use the machine's etcd.
STORE ?=

# The two servers that the conformance suite compares, `ONE,OTHER`: each is etcd, etcd-forky, embedded or the URL of a
# running server. By default, the suite compares the embedded store with each etcd. The seed selects the random calls. A
# seed that the suite printed repeats them.
CONFORMANCE_PAIR ?=
CONFORMANCE_SEED ?=

# Root directory of Debian forky, which the tests keep between runs. If empty: in /var/cache/flan.
FLAN_FORKY_ROOT ?=

# The scenarios in the virtual machine, and those of them that `make test` runs, because emulation is slow.
VM_SCENARIOS ?= debian_kernel::
VM_SCENARIOS_OF_TEST := debian_kernel::kernel_path::containers debian_kernel::kernel_path::packets_flow

# Scenarios that run at a time. They wait more than they compute.
SCENARIO_THREADS ?= 5

# Debian release of the kernel that the virtual machine boots: bookworm, trixie or forky. If empty: bookworm.
FLAN_VM_KERNEL ?=

# Options of the virtual machine; `VM_OPTIONS=--help` lists them.
VM_OPTIONS ?=

# Seed of the scenario that damages at random. A seed that it printed repeats the damage.
DAMAGE_SEED ?=

# Seed of the scenario in which networks and containers of Docker come and go at random, likewise.
DOCKER_SEED ?=

# Seconds of the soak's traffic, and the seed of its random events. A seed that a soak printed repeats the events.
SOAK_SECONDS ?= 600
SOAK_SEED ?=

# Seconds that each fuzz target runs.
FUZZ_SECONDS ?= 30

# The path of a binary that `cargo ... --message-format=json` built, by its name.
path_of = sed -n 's|.*"executable":"\([^"]*/$(1)\(-[0-9a-f]*\)\{0,1\}\)".*|\1|p' | tail -n 1

help:
	@echo 'If you are root, leave out sudo.'
	@echo 'sudo make demo        two Docker hosts in network namespaces; KEEP=1 leaves them up, STORE=etcd uses etcd'
	@echo 'sudo make demo-down   remove a demo that KEEP=1 left up'
	@echo 'sudo make test        everything: lint, unit tests, systemd units, conformance, scenarios'
	@echo '     make lint        format, clippy, rustdoc'
	@echo '     make unit        the tests that need no root, etcd or network'
	@echo 'sudo make units       check the systemd units with systemd-analyze'
	@echo 'sudo make conformance compare the embedded store with two versions of etcd, call by call'
	@echo 'sudo make scenarios   whole hosts, with real etcd and Docker; STORE=embedded or etcd-forky selects another store'
	@echo 'sudo make vm          a shell in a virtual machine with Debian'\''s kernel; ARGS=FILTER runs scenarios there instead'
	@echo 'sudo make vm-scenarios  the scenarios that need that kernel, and a reboot; make test runs some of them'
	@echo 'sudo make vm-bench    make bench in that machine; FLAN_VM_KERNEL=trixie or forky selects another kernel'
	@echo 'sudo make soak        traffic over udp while hosts come and go, to find losses and leaks; SOAK_SECONDS=600'
	@echo 'sudo make bench       speed of the data paths between two hosts, as tables; ARGS=--help lists the options'
	@echo 'sudo make bench-control  speed and cost of one fland with 100 to 50000 leases; ARGS=--help lists the options'
	@echo 'sudo make bench-names  answers about names beside dnsmasq'"'"'s; ARGS=--help lists the options'
	@echo 'sudo make bench-networks  cost of one fland with 1 to 100 networks; ARGS=--help lists the options'
	@echo '     make bench-store  speed of the embedded store beside a real etcd; ARGS=--help lists the options'
	@echo '     make fuzz        untrusted bytes against the rules; FUZZ_SECONDS=30 for each target'
	@echo '     make release     build fland and flanctl for make install'
	@echo 'sudo make install     install fland and flanctl to $(PREFIX)/bin, units to $(UNITDIR)'
	@echo 'sudo make uninstall   remove what make install installed; first run flanctl leave'
	@echo 'sudo make forky-root  fetch Docker and etcd of Debian forky for the tests: a minute; kept in /var/cache/flan'
	@echo '     make audit       check licences, bans and sources of dependencies (cargo-deny)'

demo: WITHOUT_ETCD := $(if $(filter etcd,$(STORE)),,--without-etcd)
demo: build
	@demo=$$($(CARGO) build -q --workspace --bin demo --message-format=json | $(call path_of,demo)); \
	echo; $(AS_ROOT) "$$demo" $(if $(KEEP),--keep) $(if $(STORE),--store $(STORE))

demo-down: WITHOUT_ETCD := --without-etcd
demo-down: tools
	@$(CARGO) build -q --locked --workspace --bin demo
	@demo=$$($(CARGO) build -q --workspace --bin demo --message-format=json | $(call path_of,demo)); \
	$(AS_ROOT) "$$demo" down

# `make test` always sends the same random calls. `make conformance` alone sends new ones each time.
# Debian forky is fetched while the compiler works.
test: tools
	@$(MAKE) --no-print-directory forky-root & fetched=$$!; \
	$(MAKE) --no-print-directory lint unit units; tested=$$?; \
	wait $$fetched && exit $$tested
	@$(MAKE) --no-print-directory conformance CONFORMANCE_SEED=$(or $(CONFORMANCE_SEED),906912)
	@$(MAKE) --no-print-directory scenarios
	@$(MAKE) --no-print-directory vm-scenarios VM_SCENARIOS='$(VM_SCENARIOS_OF_TEST)'

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --workspace --test conformance --test scenarios --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked

# Always of the whole workspace: of one package alone, cargo would build other features of the same dependencies once more.
unit:
	$(CARGO) test --locked --workspace

units: build
	$(AS_ROOT) deploy/verify.sh

conformance: build
	$(CARGO) test --locked --workspace --test conformance --no-run
	@conformance=$$($(CARGO) test -q --locked --workspace --test conformance --no-run --message-format=json \
		| $(call path_of,conformance)); \
	$(AS_ROOT) env RUST_LIB_BACKTRACE=0 FLAN_FORKY_ROOT=$(FLAN_FORKY_ROOT) \
		FLAN_CONFORMANCE_PAIR=$(CONFORMANCE_PAIR) FLAN_CONFORMANCE_SEED=$(CONFORMANCE_SEED) \
		"$$conformance" --test-threads=$(SCENARIO_THREADS)

scenarios: build
	$(CARGO) test --locked --workspace --test scenarios --no-run
	@scenarios=$$($(CARGO) test -q --locked --workspace --test scenarios --no-run --message-format=json \
		| $(call path_of,scenarios)); \
	$(AS_ROOT) env RUST_LIB_BACKTRACE=0 FLAN_FORKY_ROOT=$(FLAN_FORKY_ROOT) STORE=$(STORE) \
		FLAN_DAMAGE_SEED=$(DAMAGE_SEED) FLAN_DOCKER_SEED=$(DOCKER_SEED) "$$scenarios" --test-threads=$(SCENARIO_THREADS)

# With the scenarios in $$scenarios, and the program that runs them in a virtual machine in $$vm.
in_vm = $(CARGO) test --locked --workspace --test scenarios --no-run && \
	scenarios=$$($(CARGO) test -q --locked --workspace --test scenarios --no-run --message-format=json \
		| $(call path_of,scenarios)) && $(find_vm)
find_vm = vm=$$($(CARGO) build -q --locked --workspace --bin vm --message-format=json | $(call path_of,vm))
run_vm = $(AS_ROOT) env FLAN_VM_KERNEL=$(FLAN_VM_KERNEL) FLAN_FORKY_ROOT=$(FLAN_FORKY_ROOT) STORE=$(STORE) "$$vm" $(VM_OPTIONS)

# The limits of time are of emulation, which is several times slower.
vm: build
	@$(in_vm); $(run_vm) $(if $(ARGS),-- "$$scenarios" --include-ignored --skip soak:: --test-threads=2 $(ARGS))

vm-scenarios: build
	@$(in_vm); $(run_vm) --limit 900 -- "$$scenarios" $(VM_SCENARIOS) --ignored --skip debian_kernel::reboot \
		--skip debian_kernel::bare --test-threads=3
	@$(MAKE) --no-print-directory vm-reboot

vm-reboot: build
	@$(in_vm); $(run_vm) --systemd --limit 600 -- "$$scenarios" debian_kernel::reboot --ignored --nocapture

# Alone: it keeps modules from being loaded.
vm-bare: build
	@$(in_vm); $(run_vm) --limit 600 -- "$$scenarios" debian_kernel::bare --ignored --nocapture

vm-bench: tools release
	@$(CARGO) build --release --locked -p flan-integration --bin bench
	@bench=$$($(CARGO) build -q --release --locked -p flan-integration --bin bench --message-format=json \
		| $(call path_of,bench)); \
	$(find_vm); $(run_vm) --limit 36000 -- "$$bench" $(ARGS)

# Not part of the scenarios, because it takes minutes.
soak: build
	$(CARGO) test --locked --workspace --test scenarios --no-run
	@scenarios=$$($(CARGO) test -q --locked --workspace --test scenarios --no-run --message-format=json \
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

bench-names: tools release
	@$(CARGO) build --release --locked -p flan-integration --bin bench-names
	@bench=$$($(CARGO) build -q --release --locked -p flan-integration --bin bench-names --message-format=json \
		| $(call path_of,bench-names)); \
	$(AS_ROOT) "$$bench" $(ARGS)

bench-networks: tools release
	@$(CARGO) build --release --locked -p flan-integration --bin bench-networks
	@bench=$$($(CARGO) build -q --release --locked -p flan-integration --bin bench-networks --message-format=json \
		| $(call path_of,bench-networks)); \
	$(AS_ROOT) "$$bench" $(ARGS)

bench-store: tools release
	@$(CARGO) build --release --locked -p flan-integration --bin bench-store
	@bench=$$($(CARGO) build -q --release --locked -p flan-integration --bin bench-store --message-format=json \
		| $(call path_of,bench-store)); \
	"$$bench" $(ARGS)

# Finds inputs that break a rule. fuzz/run.sh can also run one target or one input.
fuzz:
	@FUZZ_SECONDS=$(FUZZ_SECONDS) fuzz/run.sh

# Installs only the packages that the build needs.
release:
	@integration/install-tools.sh --to-build
	$(CARGO) build --release --locked --bins
	rm -rf target/release/share
	cd target/release && for program in fland flanctl; do \
		./$$program man share/man8 || exit; \
		mkdir -p share/bash-completion/completions share/zsh/site-functions share/fish/vendor_completions.d || exit; \
		./$$program completions bash >share/bash-completion/completions/$$program || exit; \
		./$$program completions zsh >share/zsh/site-functions/_$$program || exit; \
		./$$program completions fish >share/fish/vendor_completions.d/$$program.fish || exit; \
	done

# Builds nothing: an ordinary user has run `make release`.
install:
	@test -x target/release/fland || { echo 'there is nothing to install yet; first: make release' >&2; exit 1; }
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin target/release/fland target/release/flanctl
	install -D -m 644 -t $(DESTDIR)$(UNITDIR) deploy/fland.service deploy/fland-docker.socket \
		deploy/fland-store.service deploy/flan-attach.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man8 target/release/share/man8/*.8
	for file in $(COMPLETIONS); do \
		install -D -m 644 target/release/share/$$file $(DESTDIR)$(PREFIX)/share/$$file || exit; \
	done
	install -D -m 644 -t $(DESTDIR)$(UNITDIR)/docker.service.d deploy/docker.service.d/flan.conf

# The directory of the drop-in stays if it holds other files.
uninstall:
	@test -n '$(DESTDIR)' || for unit in fland fland-docker.socket fland-store flan-attach; do \
		case "$$(systemctl show --property ActiveState --value $$unit 2>/dev/null)" in \
			''|inactive|failed) systemctl is-enabled --quiet $$unit 2>/dev/null || continue ;; \
		esac; \
		echo "$$unit runs or is enabled; first: systemctl disable --now $$unit" >&2; exit 1; \
	done
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,fland flanctl)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man8/,fland.8 fland-*.8 flanctl.8 flanctl-*.8)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/,$(COMPLETIONS))
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,fland.service fland-docker.socket fland-store.service \
		flan-attach.service docker.service.d/flan.conf)
	@rmdir $(DESTDIR)$(UNITDIR)/docker.service.d 2>/dev/null || true
	@echo 'The lease, devices, routes and rules stay, unless you ran flanctl leave or hand-over on this host.'
	@echo 'To remove them: target/release/flanctl leave'
	@echo 'Then: systemctl daemon-reload'

audit:
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo 'make audit needs cargo-deny: cargo install --locked cargo-deny' >&2; exit 1; }
	$(CARGO) deny check licenses bans sources

build: tools
	$(CARGO) build --locked --workspace --bins

tools:
	@integration/install-tools.sh $(WITHOUT_ETCD)

# Docker and etcd of the next Debian, in a minute. Tests that need them also fetch them; `make test` does so first. To get
# the current versions, remove the directory.
forky-root: tools
	@$(AS_ROOT) env FLAN_FORKY_ROOT=$(FLAN_FORKY_ROOT) integration/forky-root.sh >/dev/null
