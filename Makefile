# What a newcomer types. `make demo`, `make test` and `make bench` need root: sudo make demo.

BUILD := tests/lab/as-builder.sh
ROOT := tests/lab/as-builder.sh --root
PRODUCT := target/release/ntcp-overlay
LAB := target/debug/ntcp-lab

.PHONY: help build demo test test-backends bench-micro sim check bench bench-relay discovery fuzz deny interop lab-check lab-clean lab-crash lab-timing matrix packages root stun-clients

help:
	@echo 'make build       the program, optimised: $(PRODUCT)'
	@echo 'make demo        two machines behind NATs meet: ping, ssh, curl (root, two minutes)'
	@echo 'make test        every test, with real kernels and NATs (root)'
	@echo 'make sim         members, NATs, broker and relays in memory and in virtual time (no root, two minutes)'
	@echo 'make test-backends   the tests of the data plane again, without offloads (root)'
	@echo 'make check       format, lints, documentation, fast tests, fuzz targets compile, licences (no root)'
	@echo 'make bench       speed, delay and cost against what the machine can do and other tunnels (root, 20 minutes)'
	@echo 'make bench-relay what one relay carries by its kernel, in user space, and beside a kernel NAT and coturn (root, 15 minutes)'
	@echo 'make bench-micro sealing, cutting, joining, routing, each alone (no root)'
	@echo 'make fuzz        every fuzz target for a minute'
	@echo 'make interop     our STUN server, asked by clients that others wrote before every NAT (root, three minutes)'
	@echo 'make lab-check   every NAT of the lab against STUN clients that others wrote (root, three minutes)'
	@echo 'make discovery   what netcheck finds before every NAT of the lab, against what it does (root, four minutes)'
	@echo 'make matrix      two members between every pair of NATs: what carried, how soon (root, twenty minutes)'
	@echo 'make lab-timing  how fast the lab is: coming, going, and its wires (root, one minute)'
	@echo 'make lab-crash   the lab killed fifty times leaves nothing behind (root, one minute)'
	@echo 'make lab-clean   remove namespaces that killed tests left behind (root)'

packages:
	@tests/lab/install.sh

root:
	@[ "$$(id -u)" = 0 ] || { echo 'this needs root for network namespaces: sudo make $(MAKECMDGOALS)' >&2; exit 1; }

build: packages
	$(BUILD) cargo build --release --locked --bin ntcp-overlay

demo: root build
	$(BUILD) cargo build --locked -p ntcp-lab
	$(LAB) demo --bin $(PRODUCT)

# Built as the calling user, run as root. Doc tests come last, so the very last summary is theirs.
test: root packages stun-clients
	$(BUILD) cargo test --workspace --locked --no-run
	$(BUILD) cargo test --release --locked -p ntcp-sim --test crowd -- --nocapture
	$(ROOT) cargo test --workspace --locked --no-fail-fast

sim: packages
	$(BUILD) cargo test --release --locked -p ntcp-sim -- --nocapture

# What touches the data plane, with one packet a call at the device and the sockets, and with that at the sockets alone.
BACKENDS := offload udp_offload
CARRIED := bulk direct_tcp e2e gateways kernel narrow networks servers splice
test-backends: root packages
	$(BUILD) cargo test --workspace --locked --no-run
	@for key in $(BACKENDS); do echo "member.$$key = false"; \
	    printf '[member]\n%s = false\n' $$key >target/$$key.toml; \
	    NTCP_LAB_CONFIG=$$PWD/target/$$key.toml $(ROOT) cargo test --locked --no-fail-fast $(CARRIED:%=--test %) \
	        || exit 1; done

check: packages
	$(BUILD) cargo fmt --all --check
	$(BUILD) cargo clippy --workspace --all-targets --locked -- -D warnings
	@tests/lab/install.sh c++ g++
	$(BUILD) cargo check --quiet --locked --manifest-path fuzz/Cargo.toml
	RUSTDOCFLAGS='-D warnings' $(BUILD) cargo doc --workspace --no-deps --locked --document-private-items
	$(BUILD) cargo test --locked --lib --bins
	@$(MAKE) --no-print-directory deny

deny:
	@$(BUILD) cargo deny --version >/dev/null 2>&1 || \
	    { echo 'installing cargo-deny (once)'; $(BUILD) cargo install --locked --quiet cargo-deny; }
	$(BUILD) cargo deny check bans licenses sources
	@if $(BUILD) cargo deny fetch db 2>/dev/null; then $(BUILD) cargo deny check advisories; \
	    else echo 'NOT RUN: security advisories: their database could not be fetched'; fi

# ROUNDS, SECONDS and ONLY (names, separated by commas) change what is measured. Others' programs that Debian has not, or
# not new enough: NTCP_BENCH_WIREGUARD_GO, NTCP_BENCH_NEBULA, NTCP_BENCH_EASYTIER name them.
ROUNDS ?= 3
SECONDS ?= 3
bench: root build
	@tests/lab/install.sh tincd tinc openvpn openvpn openssl openssl
	$(BUILD) cargo build --release --locked -p ntcp-lab
	target/release/ntcp-lab bench --bin $(PRODUCT) --rounds $(ROUNDS) --seconds $(SECONDS) $(if $(ONLY),--only '$(ONLY)')

# ROUNDS, SECONDS, CONNECTIONS (numbers, separated by commas), IDLE and ACTIVE (sessions on one relay) change what is
# measured.
bench-relay: root packages
	@tests/lab/install.sh turnserver coturn
	$(BUILD) cargo bench --locked --bench relay --no-run
	ROUNDS=$(ROUNDS) SECONDS=$(SECONDS) $(ROOT) cargo bench --locked --bench relay

bench-micro:
	$(BUILD) cargo bench --locked --bench dataplane

fuzz:
	@tests/lab/install.sh c++ g++
	$(BUILD) fuzz/run.sh 60

# pystun3 comes from PyPI into the build directory; without it, that client is reported as not run.
stun-clients:
	@tests/lab/install.sh turnserver coturn stun stun-client stund stun-server
	@[ -x target/pystun3/bin/pystun3 ] || $(BUILD) sh -c 'python3 -m venv target/pystun3 && \
	    target/pystun3/bin/pip install --quiet pystun3==2.0.0' || true

lab-check: root packages stun-clients
	$(BUILD) cargo build --locked -p ntcp-lab
	$(LAB) check

interop: root build stun-clients
	$(BUILD) cargo build --locked -p ntcp-lab
	$(LAB) interop --bin $(PRODUCT)

discovery: root packages
	$(BUILD) cargo build --locked --workspace
	$(LAB) discovery --bin target/debug/ntcp-overlay

matrix: root build
	$(BUILD) cargo build --locked -p ntcp-lab
	$(LAB) matrix --bin $(PRODUCT)

lab-timing: root packages
	$(BUILD) cargo build --locked -p ntcp-lab
	$(LAB) timing

lab-crash: root packages
	NTCP_LAB_CRASHES=50 $(ROOT) cargo test --locked -p ntcp-lab --test leftovers

lab-clean: root
	$(BUILD) cargo build --locked -q -p ntcp-lab
	$(LAB) clean
