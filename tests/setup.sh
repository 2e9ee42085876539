#!/usr/bin/env bash
# Builds everything that the demo and the tests run: the lab's programs (Kubernetes among them), Landfall's binary, its
# image, and the tools. The first run takes about ten minutes on two cores. Later runs build only changed parts, and
# take seconds if nothing has changed.
#
#   tests/setup.sh                 everything
#   tests/setup.sh --only-image    only Landfall's binary and image (needs no root)
#   tests/setup.sh --with-peers    everything, and the rivals in benchmarks (keepalived)
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

# build TITLE PACKAGES ARGUMENTS...: runs `cargo build` for these packages, and prints its progress every 20 s.
build() {
    local title=$1 packages=$2 log all done began pid
    shift 2
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
        all=${all:-$(crates "$packages")}
        done=$(grep -cE '^ +(Fresh|Compiling) ' "$log" || true)
        ((done == 0)) ||
            progress "  $done of $all crates, about $(((SECONDS - began) * (all - done) / done + 20)) s left"
        sleep 1
    done
    wait $pid || {
        tail -40 "$log" >&2
        fail "building $title failed"
    }
    rm -f "$log"
    trap - EXIT INT TERM
}

# crates PACKAGES: prints the number of crates that `cargo build` visits for these packages, with dependencies.
crates() {
    local options=()
    for package in $1; do options+=(--package "$package"); done
    cargo tree --locked --prefix none --edges normal,build "${options[@]}" | sed 's/ (\*)$//' | sort -u | wc -l
}

command -v cargo >/dev/null || fail "cargo is not in PATH: install Rust with rustup (https://rustup.rs)"
if [ "${1:-}" = --only-image ]; then
    [ -d "$(rustc --target $target --print target-libdir 2>/dev/null)" ] || rustup target add $target
    command -v musl-gcc >/dev/null || fail "musl-gcc is missing: apt-get install musl-tools"
    command -v cc >/dev/null || fail "cc is missing: apt-get install build-essential"
elif [ "${1:-}" = --with-peers ]; then
    tests/lab/setup.sh keepalived
else
    tests/lab/setup.sh
fi
build "Landfall" "landfall" --release --target $target --package landfall
# Cargo selects features by the selected packages, and by whether a test is selected. With the whole workspace and one
# small test, the features are those of `cargo test --workspace`, so all debug builds share each compiled dependency.
build "the lab and the demo" "lab demo" --workspace --bin lab --bin demo --test whole_run
if [ ! "$image" -nt "$binary" ]; then
    progress "building the image $image"
    target/debug/lab image $binary landfall:dev $image
fi
progress "ready"
