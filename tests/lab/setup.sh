#!/bin/bash
# Makes this machine ready for the lab: installs what is missing, builds what the lab runs.
#
#   tests/lab/setup.sh            about 6 minutes on a fresh machine with 2 cores, 2 seconds when all is there
#   tests/lab/setup.sh PACKAGE... and these Debian packages, of which each has a command of its name
#
# Needs root, apt-get, Rust (rustup) and Go. Installs Debian packages (no service is started, none stays enabled to run
# here) and a Rust target; everything built goes to target/lab, or to $LANDFALL_LAB. Run it again at any time: only what
# has changed is done, and two at once take turns.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$(realpath -m "${LANDFALL_LAB:-$root/target/lab}")
cd "$root"
# The version of Kubernetes in kubernetes/go.mod, as clients shall see it.
version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$here/kubernetes/go.mod")
target=$(uname -m)-unknown-linux-musl

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "this needs root: it installs packages, and the lab makes namespaces"
# Said now, and not after ten minutes of building.
grep -q ' cgroup2 ' /proc/mounts && grep -q '^[^ ]* [^ ]*/memory cgroup ' /proc/mounts ||
  fail "the lab needs control groups in hybrid mode; boot with systemd.unified_cgroup_hierarchy=0"
mkdir -p "$out/bin"
# However it ends: no policy of ours stays in /usr/sbin, no build goes on unseen.
policy= build=
tidy_up() {
  [ -z "$policy" ] || rm -f "$policy"
  [ -z "$build" ] || kill "$build" 2>/dev/null || :
}
trap tidy_up EXIT
trap 'exit 130' INT TERM HUP
exec 9>"$out/setup.lock"
flock --nonblock 9 || { say "waiting for another setup.sh to end"; flock 9; }

# --- Debian packages ------------------------------------------------------------------------------------------------
# A command that tells whether the package is there, and the package.
packages=()
for package; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$package" >/dev/null || packages+=("$package")
done
while read -r command package; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || packages+=("$package")
done <<'END'
etcd etcd-server
containerd containerd
runc runc
/usr/lib/cni/ptp containernetworking-plugins
nft nftables
iptables iptables
conntrack conntrack
tcpdump tcpdump
ip iproute2
ss iproute2
nsenter util-linux
arping iputils-arping
ping iputils-ping
curl curl
musl-gcc musl-tools
awk mawk
cc build-essential
END
if [ ${#packages[@]} -gt 0 ]; then
  say "installing ${packages[*]} (about 30 s)"
  command -v apt-get >/dev/null || fail "apt-get isn't there; install by other means: ${packages[*]}"
  # Packages of daemons would start them. Debian asks this file first; one that is there already is left alone.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  log=$out/apt.log
  export DEBIAN_FRONTEND=noninteractive
  apt_install() { apt-get install -y -q --no-install-recommends "${packages[@]}" >>"$log" 2>&1; }
  : >"$log"
  # The lists of packages may be old or missing: then they are fetched, and it is tried once more.
  apt_install || { apt-get update -q >>"$log" 2>&1 && apt_install; } || fail "apt-get failed, see $log"
  [ -z "$policy" ] || rm -f "$policy"
  policy=
fi

# --- the guests: what runs in pods ----------------------------------------------------------------------------------
command -v cargo >/dev/null || fail "cargo isn't there: install Rust with rustup"
if ! rustc --target "$target" --print target-libdir >/dev/null 2>&1 ||
  [ ! -d "$(rustc --target "$target" --print target-libdir)" ]; then
  say "adding the Rust target $target"
  rustup target add "$target" >/dev/null 2>&1 || fail "rustup target add $target failed: is rustup there, and the network?"
fi
say "building whoami and pause"
# In a directory of their own: another build that holds the usual one may take long.
cargo build --quiet --release --target-dir "$out/guests" --target "$target" --package guests
built=$out/guests/$target/release
for guest in whoami pause; do
  # By renaming: a running cluster keeps the file it has open.
  cmp -s "$built/$guest" "$out/bin/$guest" && continue
  cp "$built/$guest" "$out/bin/.$guest" && mv "$out/bin/.$guest" "$out/bin/$guest"
done

# --- Kubernetes -----------------------------------------------------------------------------------------------------
command -v go >/dev/null || fail "go isn't there: install Go 1.26 or newer"
cd "$here/kubernetes"
sum=$(cat go.mod go.sum ./*.go | sha256sum | cut -d' ' -f1)
if [ -x "$out/bin/kubernetes" ] && [ "$(cat "$out/bin/.kubernetes.sum" 2>/dev/null)" = "$sum" ]; then
  say "Kubernetes $version is built"
else
  say "fetching Kubernetes $version and what it is made of (about a minute the first time)"
  go mod download || fail "go mod download failed: is the module proxy reachable? (go env GOPROXY: $(go env GOPROXY))"
  all=$(CGO_ENABLED=0 go list -deps . | wc -l)
  say "building Kubernetes $version: $all packages (about 5 minutes on 2 cores the first time)"
  IFS=. read -r major minor _ <<<"${version#v}"
  package=k8s.io/component-base/version
  log=$out/go-build.log
  start=$SECONDS
  CGO_ENABLED=0 go build -v -trimpath -buildvcs=false -o "$out/bin/.kubernetes" \
    -ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor" . \
    >"$log" 2>&1 &
  build=$!
  # `go build -v` writes a line per package it compiles. What is cached isn't compiled, so the estimate is an upper bound.
  while kill -0 $build 2>/dev/null; do
    for _ in $(seq 100); do sleep 0.2; kill -0 $build 2>/dev/null || break; done
    done=$(wc -l <"$log")
    if kill -0 $build 2>/dev/null && [ "$done" -gt 20 ]; then
      say "  $done of up to $all packages, at most $(((SECONDS - start) * (all - done) / done + 15)) s to go"
    fi
  done
  wait $build || { build=; tail -20 "$log" >&2; fail "go build failed, see $log"; }
  build=
  mv "$out/bin/.kubernetes" "$out/bin/kubernetes"
  echo "$sum" >"$out/bin/.kubernetes.sum"
fi

say "ready: cargo run -q -p lab -- up demo"
