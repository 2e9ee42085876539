# Landfall's commands. `make` alone lists them. Each does its own set-up: on a machine with Rust, Go and apt-get nothing
# else has to be there.

SHELL := /bin/bash
.DEFAULT_GOAL := help
NAME ?= demo
LAB := target/debug/lab

.PHONY: help setup build demo test bench bench-controller bench-failover bench-dataplane lab-up lab-down crds

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install and build what the lab needs (once; about ten minutes on two cores)
	@tests/setup.sh

build: ## Build the binary that is shipped, and its image (target/landfall.tar)
	@tests/setup.sh --only-image

demo: setup ## Show it: a cluster, an EXTERNAL-IP that appears and answers, a node that dies (NAME=demo, CLEAN=1: leave nothing)
	@target/debug/demo $(NAME) $(if $(CLEAN),--clean)

test: ## Everything CI checks: format, lints, unit, property, kernel and end-to-end tests
	@tests/run.sh

bench: setup ## Measure: Service to address to first answer, memory, size (a cluster of its own, half a minute)
	@cargo run --quiet --locked -p e2e --bin first-light

bench-controller: setup ## Measure the controller beside a bare loop that makes the same writes (a long run; QUICK=1: five minutes)
	@cargo build --quiet --release --locked --target x86_64-unknown-linux-musl -p bench
	@target/x86_64-unknown-linux-musl/release/bench-controller $(if $(QUICK),--quick)

bench-failover: ## Measure what clients notice when a node dies, beside keepalived (25 minutes; QUICK=1: six minutes)
	@tests/setup.sh --with-peers
	@cargo build --quiet --release --locked --target x86_64-unknown-linux-musl -p bench
	@target/x86_64-unknown-linux-musl/release/bench-failover $(if $(QUICK),--quick)

bench-dataplane: setup ## Measure forwarding beside kube-proxy, routing and one static rule (28 minutes; QUICK=1: eleven minutes)
	@cargo build --quiet --release --locked --target x86_64-unknown-linux-musl -p bench
	@target/x86_64-unknown-linux-musl/release/bench-dataplane $(if $(QUICK),--quick)

lab-up: setup ## Bring up a cluster to play with: NAME=demo ARGS='--nodes 3 --kube-proxy none'
	@$(LAB) up $(NAME) $(ARGS)

lab-down: ## Remove every trace of a cluster: NAME=demo
	@$(LAB) down $(NAME)

crds: ## Write deploy/crds.yaml from the types in crds/
	@LANDFALL_WRITE_GOLDENS=1 cargo test --quiet --locked -p crds manifest && git --no-pager diff --stat deploy/crds.yaml
