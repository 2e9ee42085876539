#!/bin/bash
# Prepares this machine for the lab: installs missing packages, builds the lab's programs.
#
#   tests/lab/setup.sh            about 6 minutes on a fresh machine with 2 cores, 2 seconds if nothing has changed
#   tests/lab/setup.sh PACKAGE... also installs these Debian packages, except those whose command exists already. The
#                                 command has the name of the package, or is given: COMMAND:PACKAGE
#   tests/lab/setup.sh --only-packages PACKAGE...   ends after the installation of packages and the Rust target
#
# Needs root, apt-get, Rust (rustup) and Go. Installs Debian packages (their services are neither started nor enabled)
# and a Rust target. Build output goes to target/lab, or to $LANDFALL_LAB. It can run again at any time: it does only the
# missing steps, and two runs take turns.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$(realpath -m "${LANDFALL_LAB:-$root/target/lab}")
cd "$root"
# Kubernetes' version in kubernetes/go.mod, which the API server reports to clients.
version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$here/kubernetes/go.mod")
target=$(uname -m)-unknown-linux-musl
only_packages=
if [ "${1:-}" = --only-packages ]; then
  only_packages=1
  shift
fi

progress() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "this needs root, to install packages and to create namespaces; run it in a root shell"
command -v cargo >/dev/null || fail "cargo is not in PATH: install Rust with rustup (https://rustup.rs)"
mkdir -p "$out/bin"
# Removes our policy file and ends the build, also after an error or an interrupt.
policy= build=
clean_up() {
  [ -z "$policy" ] || rm -f "$policy"
  [ -z "$build" ] || kill "$build" 2>/dev/null || :
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
exec 9>"$out/setup.lock"
flock --nonblock 9 || { progress "waiting for another setup.sh to end"; flock 9; }

# --- Debian packages ------------------------------------------------------------------------------------------------
# install PACKAGE...: installs Debian packages, without starting their services. Fails with a message if it cannot.
install() {
  if ! command -v apt-get >/dev/null; then
    printf 'setup: apt-get is missing; install the programs of these Debian packages by other means: %s\n' "$*" >&2
    return 1
  fi
  progress "installing $* (about 30 s)"
  # Debian starts a package's daemon unless this file forbids it. An existing file is left alone.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  local log=$out/apt.log
  export DEBIAN_FRONTEND=noninteractive
  apt_install() { apt-get install -y -q --no-install-recommends "$@" >>"$log" 2>&1; }
  : >"$log"
  # If the package lists are old or missing, it fetches them and tries once more.
  local installed=1
  apt_install "$@" || { apt-get update -q >>"$log" 2>&1 && apt_install "$@"; } || installed=0
  [ -z "$policy" ] || rm -f "$policy"
  policy=
  [ $installed = 0 ] || return 0
  tail -5 "$log" >&2
  printf 'setup: apt-get could not install %s\n' "$*" >&2
  printf 'setup: check the network and /etc/apt (log: %s), or install the programs by other means\n' "$log" >&2
  return 1
}

# doctor OPTION...: checks this machine. It is a small program, built in seconds.
doctor() { cargo run --quiet --locked --package doctor -- "$@"; }
refuse() { fail "this machine cannot run the lab (see above; all checks: make doctor)"; }

# Without a linker nothing can be built.
command -v cc >/dev/null || install build-essential || exit 1
cargo build --quiet --locked --package doctor ||
  fail "tests/doctor does not build (see above): the first build needs the network, for Rust and its crates"
# This check precedes the builds, which take minutes.
doctor --quiet --before-setup || refuse
mapfile -t packages < <(doctor --packages)
if [ ${#packages[@]} -gt 0 ]; then
  # Some of them are optional, so the doctor decides after a failure. The doctor can try some kernel features only with
  # these programs.
  install "${packages[@]}" || progress "going on without them, if possible"
  doctor --quiet || refuse
fi
requested=()
for argument; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${argument%:*}" >/dev/null || requested+=("${argument#*:}")
done
[ ${#requested[@]} = 0 ] || install "${requested[@]}" || exit 1

# --- the guests: programs of the pods -------------------------------------------------------------------------------
if ! rustc --target "$target" --print target-libdir >/dev/null 2>&1 ||
  [ ! -d "$(rustc --target "$target" --print target-libdir)" ]; then
  progress "adding the Rust target $target"
  rustup target add "$target" >"$out/rustup.log" 2>&1 || {
    cat "$out/rustup.log" >&2
    fail "rustup target add $target failed: check the network; without rustup, install Rust's target $target"
  }
fi
[ -z "$only_packages" ] || exit 0
progress "building whoami and pause"
# A separate target directory: another build may hold the lock of the usual one for minutes.
cargo build --quiet --release --target-dir "$out/guests" --target "$target" --package guests
built=$out/guests/$target/release
for guest in whoami pause; do
  # Replaced by a rename: a running cluster keeps the file that it has open.
  cmp -s "$built/$guest" "$out/bin/$guest" && continue
  cp "$built/$guest" "$out/bin/.$guest" && mv "$out/bin/.$guest" "$out/bin/$guest"
done

# --- Kubernetes -----------------------------------------------------------------------------------------------------
cd "$here/kubernetes"
sum=$(cat go.mod go.sum ./*.go | sha256sum | cut -d' ' -f1)
if [ -x "$out/bin/kubernetes" ] && [ "$(cat "$out/bin/.kubernetes.sum" 2>/dev/null)" = "$sum" ]; then
  progress "Kubernetes $version is built"
else
  progress "fetching Kubernetes $version and its dependencies (about a minute the first time)"
  go mod download || fail "go mod download failed: is the module proxy reachable? (go env GOPROXY: $(go env GOPROXY))"
  all=$(CGO_ENABLED=0 go list -deps . | wc -l)
  progress "building Kubernetes $version: $all packages (about 5 minutes on 2 cores the first time)"
  IFS=. read -r major minor _ <<<"${version#v}"
  package=k8s.io/component-base/version
  log=$out/go-build.log
  start=$SECONDS
  CGO_ENABLED=0 go build -v -trimpath -buildvcs=false -o "$out/bin/.kubernetes" \
    -ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor" . \
    >"$log" 2>&1 &
  build=$!
  # `go build -v` prints a line per package that it compiles. Cached packages have no line, so the estimate is an upper
  # bound.
  while kill -0 $build 2>/dev/null; do
    for _ in $(seq 100); do sleep 0.2; kill -0 $build 2>/dev/null || break; done
    done=$(wc -l <"$log")
    if kill -0 $build 2>/dev/null && [ "$done" -gt 20 ]; then
      progress "  $done of up to $all packages, at most $(((SECONDS - start) * (all - done) / done + 15)) s to go"
    fi
  done
  wait $build || { build=; tail -20 "$log" >&2; fail "go build failed, see $log"; }
  build=
  mv "$out/bin/.kubernetes" "$out/bin/kubernetes"
  echo "$sum" >"$out/bin/.kubernetes.sum"
fi

progress "ready: cargo run -q -p lab -- up demo"
