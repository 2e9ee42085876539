# Landfall's commands. `make` alone lists them. Each does its own set-up and needs only Rust, Go and apt-get.

SHELL := /bin/bash
.DEFAULT_GOAL := help
NAME ?= demo
SEEDS ?= 200000
FUZZ_SECONDS ?= 600
LAB := target/debug/lab

.PHONY: help setup doctor build demo test kernels soak bench bench-controller bench-failover bench-dataplane bench-all bench-compare lab-up lab-down crds reference

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install and build the lab, Landfall and its image (once; about ten minutes on two cores)
	@tests/setup.sh

doctor: ## Check whether this machine can run the lab, and how to fix it (a second)
	@cargo run --quiet --locked -p doctor

build: ## Build the release binary and its image (target/landfall.tar)
	@tests/setup.sh --only-image

demo: setup ## Show Landfall: a cluster, an EXTERNAL-IP that appears and answers, a node that dies (NAME=demo, CLEAN=1: remove it)
	@target/debug/demo $(NAME) $(if $(CLEAN),--clean)

test: ## Run everything CI checks: format, lints, unit, property, kernel and end-to-end tests (docs/dev/testing.md)
	@tests/run.sh

kernels: ## Run the kernel tests on Debian's kernels in QEMU (KERNELS='5.10 6.1' STEPS='dataplane::links doctor': only these)
	@tests/lab/setup.sh --only-packages qemu-system-x86_64:qemu-system-x86 depmod:kmod xz:xz-utils
	@cargo build --quiet --locked --package doctor
	@cargo build --quiet --locked --target x86_64-unknown-linux-musl --package kernels
	@target/x86_64-unknown-linux-musl/debug/kernels $(KERNELS) --steps $(STEPS)

soak: ## Search the speaker for defects with fresh seeds: simulation, then fuzzers (seven hours; SEEDS=200000 FUZZ_SECONDS=600)
	@LANDFALL_SEEDS=$(SEEDS) cargo test --quiet --locked --workspace --test simulation any_disturbance
	@LANDFALL_FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --quiet --locked --workspace --test fuzz

bench: setup ## Measure time from Service to address and first answer, memory, size (half a minute)
	@cargo build --quiet --locked --workspace --bin first-light --test whole_run
	@target/debug/first-light

bench-controller: setup ## Measure the controller beside a loop that only sends the same writes (a long run; QUICK=1: five minutes)
	@cargo build --quiet --release --locked --target x86_64-unknown-linux-musl -p bench
	@target/x86_64-unknown-linux-musl/release/bench-controller $(if $(QUICK),--quick)

bench-failover: ## Measure the outage for clients when a node dies, beside keepalived (25 minutes; QUICK=1: six minutes)
	@tests/setup.sh --with-peers
	@cargo build --quiet --release --locked --target x86_64-unknown-linux-musl -p bench
	@target/x86_64-unknown-linux-musl/release/bench-failover $(if $(QUICK),--quick)

bench-dataplane: setup ## Measure forwarding beside kube-proxy, routing and one static rule (28 minutes; QUICK=1: eleven minutes)
	@cargo build --quiet --release --locked --target x86_64-unknown-linux-musl -p bench
	@target/x86_64-unknown-linux-musl/release/bench-dataplane $(if $(QUICK),--quick)

bench-all: ## Run all benchmarks quickly, and compare their figures with the accepted ones (half an hour, on an idle machine)
	@rm -f target/bench/*.json
	@failed=; for name in bench bench-controller bench-failover bench-dataplane; do \
		printf '\n=== %s\n' $$name; \
		$(MAKE) --no-print-directory $$name QUICK=1 || failed="$$failed $$name"; \
	done; \
	printf '\n=== comparison\n'; \
	$(MAKE) --no-print-directory bench-compare || failed="$$failed bench-compare"; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

bench-compare: ## Compare the figures of the last runs with the accepted ones (ACCEPT=1: accept them; docs/dev/testing.md)
	@cargo build --quiet --release --locked --target x86_64-unknown-linux-musl -p bench --bin bench-compare
	@target/x86_64-unknown-linux-musl/release/bench-compare $(if $(ACCEPT),--accept)

lab-up: setup ## Start a cluster for experiments: NAME=demo ARGS='--nodes 3 --kube-proxy none'
	@$(LAB) up $(NAME) $(ARGS)

lab-down: ## Remove a cluster: NAME=demo
	@$(LAB) down $(NAME)

reference: ## Generate docs/reference/api.md from the code
	@LANDFALL_WRITE_GOLDENS=1 cargo test --quiet --locked -p landfall reference && git --no-pager diff --stat docs/reference

crds: ## Generate the definitions in deploy/landfall.yaml from the types in crds/
	@LANDFALL_WRITE_GOLDENS=1 cargo test --quiet --locked -p crds manifest && git --no-pager diff --stat deploy/landfall.yaml
