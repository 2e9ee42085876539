#!/usr/bin/env bash
# Runs everything that CI checks: starts the program in tests/ci, which runs all stages and decides whether the run
# passes. The last line of the output is always `N passed, N failed, N skipped`. docs/dev/testing.md explains the rules.
set -euo pipefail
cd "$(dirname "$0")/.."

# On a fresh clone the build writes no records for incremental builds: they cost 8 % of the time. A clone that has such
# records goes on using them.
[ -d "${CARGO_TARGET_DIR:-target}/debug/incremental" ] || export CARGO_INCREMENTAL=0

# Without the program no stage can run.
abort() {
    printf '%s\n0 passed, 0 failed, 0 skipped\n' "$1"
    exit 1
}

command -v cargo >/dev/null || abort "cargo is not in PATH: install Rust with rustup (https://rustup.rs)"
# The set-up installs a linker on a machine that has none.
command -v cc >/dev/null || tests/setup.sh || abort "the set-up of the lab failed"
cargo build --quiet --locked --package doctor ||
    abort "tests/doctor does not build (see above): the first build needs the network, for Rust and its crates"
# A machine that cannot run the tests is reported within seconds.
cargo run --quiet --locked --package doctor -- --quiet --before-setup ||
    abort "this machine cannot run the tests (see above; all checks: make doctor)"
cargo build --quiet --locked --package ci || abort "tests/ci does not build"
exec "${CARGO_TARGET_DIR:-target}/debug/ci"
