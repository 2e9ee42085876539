#!/usr/bin/env bash
# Builds everything that the demo and the tests run: the lab's programs (Kubernetes among them), Landfall's binary, its
# image, and the tools. Takes about ten minutes on a fresh machine with two cores. Later runs build only changed parts,
# and take seconds otherwise.
#
#   tests/setup.sh                 everything
#   tests/setup.sh --only-image    only Landfall's binary and image (needs no root)
#   tests/setup.sh --with-peers    everything, and the benchmarks' rivals of Landfall (keepalived)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=x86_64-unknown-linux-musl
binary=target/$target/release/landfall
image=target/landfall.tar

progress() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# build TITLE ARGUMENTS...: runs `cargo build`, and prints its progress every 20 s.
build() {
    local title=$1 log all done began pid
    shift
    log=$(mktemp)
    progress "building $title"
    cargo build --locked --verbose "$@" >"$log" 2>&1 &
    pid=$!
    # An interrupt ends the build as well.
    trap 'kill $pid 2>/dev/null; rm -f "$log"' EXIT
    trap 'exit 130' INT TERM
    began=$SECONDS
    while sleep 0.2 && kill -0 $pid 2>/dev/null; do
        ((SECONDS - began < 15 || (SECONDS - began) % 20 != 15)) && continue
        all=${all:-$(crates "$@")}
        done=$(grep -cE '^ +(Fresh|Compiling) ' "$log" || true)
        ((done == 0)) || progress "  $done of $all crates, about $(((SECONDS - began) * (all - done) / done + 20)) s to go"
        sleep 1
    done
    wait $pid || {
        tail -40 "$log" >&2
        fail "building $title failed"
    }
    rm -f "$log"
    trap - EXIT INT TERM
}

# crates ARGUMENTS...: prints the number of crates that `cargo build` with these arguments visits, with dependencies.
crates() {
    local arguments=()
    for argument in "$@"; do [ "$argument" = --release ] || arguments+=("$argument"); done
    cargo tree --locked --prefix none --edges normal,build "${arguments[@]}" | sed 's/ (\*)$//' | sort -u | wc -l
}

command -v cargo >/dev/null || fail "cargo is missing: install Rust with rustup (https://rustup.rs)"
if [ "${1:-}" = --only-image ]; then
    [ -d "$(rustc --target $target --print target-libdir 2>/dev/null)" ] || rustup target add $target
    command -v musl-gcc >/dev/null || fail "musl-gcc is missing: apt-get install musl-tools"
    command -v cc >/dev/null || fail "cc is missing: apt-get install build-essential"
elif [ "${1:-}" = --with-peers ]; then
    tests/lab/setup.sh keepalived
else
    tests/lab/setup.sh
fi
build "Landfall" --release --target $target --package landfall
build "the lab and the demo" --package lab --package demo
if [ ! "$image" -nt "$binary" ]; then
    progress "building the image $image"
    target/debug/lab image $binary landfall:dev $image
fi
progress "ready"
