#!/bin/sh
# Finds a Rust toolchain and runs a command with it: as-builder.sh [--root] COMMAND...
#
# Under sudo, cargo belongs to the user who called sudo: building is done as that user, so that nothing in the source
# tree or in ~/.cargo becomes root's. With --root the command keeps root's rights but uses the same toolchain.
set -eu

as_root=no
if [ "${1:-}" = --root ]; then
    as_root=yes
    shift
fi

user=${SUDO_USER:-}
if [ "$(id -u)" = 0 ] && [ -n "$user" ] && [ "$user" != root ]; then
    home=$(getent passwd "$user" | cut -d: -f6)
    if [ -x "$home/.cargo/bin/cargo" ]; then
        set -- env HOME="$home" CARGO_HOME="$home/.cargo" RUSTUP_HOME="$home/.rustup" \
            PATH="$home/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "$@"
        if [ "$as_root" = no ]; then
            exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups "$@"
        fi
        status=0
        "$@" || status=$?
        # What root has just written goes back to the builder.
        find target -user root -exec chown -h "$user:" {} + 2>/dev/null || true
        exit "$status"
    fi
fi

PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"
export PATH
if ! command -v cargo >/dev/null 2>&1; then
    echo "no cargo found: install a Rust toolchain (https://rustup.rs) and run this again" >&2
    exit 1
fi
exec "$@"
