#!/usr/bin/env bash
# Everything CI checks. The last lines say how many tests ran.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
begun=$SECONDS

stage() { # TITLE COMMAND...: runs it with its time; what it prints is kept for the count.
    local title=$1 since=$SECONDS
    shift
    printf '\n=== %s\n' "$title"
    if ! "$@" 2>&1 | tee -a "$log"; then
        printf '\n!!! %s failed after %d s\n' "$title" $((SECONDS - since))
        summary
        exit 1
    fi
    printf -- '--- %s: %d s\n' "$title" $((SECONDS - since))
}

summary() { # Counts what cargo's test runners said.
    awk -v seconds=$((SECONDS - begun)) '
        /^test result: / { passed += $4; failed += $6; ignored += $8 }
        END {
            printf "\nwall time: %d s\n", seconds
            printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored
        }' "$log"
}

lints() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

fast() { # Everything that needs no cluster: pure functions, goldens, and the kernel in namespaces of the tests' own.
    cargo test --workspace --locked --exclude lab --exclude e2e
}

clusters() { # The lab itself, then the scenarios; each brings up clusters of its own.
    cargo test --locked -p lab -p e2e --no-fail-fast -- --test-threads "${LANDFALL_TEST_CLUSTERS:-2}"
}

stage "format" cargo fmt --all --check
stage "set-up of the lab" tests/setup.sh
stage "lints" lints
stage "unit, property and kernel tests" fast
stage "end-to-end tests on real clusters" clusters
summary
