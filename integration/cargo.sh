#!/bin/sh
# Runs cargo for whoever typed the command, also under sudo: with that person's toolchain, which root's PATH lacks, and
# as that person, so that nothing in target/ belongs to root.
set -eu

if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    as_user() { setpriv --reuid "$SUDO_UID" --regid "$SUDO_GID" --init-groups "$@"; }
    if as_user test -w . && { [ ! -e target ] || as_user test -w target; }; then
        HOME=$home USER=$SUDO_USER LOGNAME=$SUDO_USER PATH=$home/.cargo/bin:$PATH
        export HOME USER LOGNAME PATH
        if command -v cargo >/dev/null; then
            exec setpriv --reuid "$SUDO_UID" --regid "$SUDO_GID" --init-groups cargo "$@"
        fi
    elif [ -x "$home/.cargo/bin/cargo" ]; then
        # The tree is root's: build as root, but with the toolchain that is there.
        RUSTUP_HOME=$home/.rustup PATH=$home/.cargo/bin:$PATH
        export RUSTUP_HOME PATH
    fi
fi

PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
if ! command -v cargo >/dev/null; then
    echo "there is no cargo here: install Rust 1.90 or later, see https://rustup.rs" >&2
    exit 1
fi
exec cargo "$@"
