# What the scripts share. Sourced, not run.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
cd "$root" || exit 1

say() { printf '\n== %s\n' "$*"; }

# need TOOL=PACKAGE...: as root on a Debian, installs the packages of the tools that are not there; else names them.
need() {
    local pair missing=() packages=()
    for pair in "$@"; do
        if ! command -v "${pair%%=*}" >/dev/null 2>&1; then
            missing+=("${pair%%=*}")
            packages+=("${pair#*=}")
        fi
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing ${packages[*]}"
        apt-get update -qq >/dev/null &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
        for pair in "$@"; do
            command -v "${pair%%=*}" >/dev/null 2>&1 || { echo "missing: ${pair%%=*}" >&2; return 1; }
        done
    else
        echo "missing: ${missing[*]} (Debian: ${packages[*]})" >&2
        return 1
    fi
}

# What every build needs: TLS and PCRE are compiled from C.
need_rust() {
    need cc=gcc c++=g++ make=make cmake=cmake git=git || return 1
    if ! command -v cargo >/dev/null 2>&1; then
        echo "missing: cargo (https://rustup.rs)" >&2
        return 1
    fi
}

# need_component COMMAND=COMPONENT...: cargo's commands that a minimal toolchain lacks.
need_component() {
    local pair
    for pair in "$@"; do
        cargo "${pair%%=*}" --version >/dev/null 2>&1 && continue
        if ! command -v rustup >/dev/null 2>&1 || ! rustup component add "${pair#*=}"; then
            echo "missing: cargo ${pair%%=*}" >&2
            return 1
        fi
    done
}
