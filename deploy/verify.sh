#!/bin/sh
# Checks the units with systemd-analyze, as if everything were installed. Needs root for its own mount namespace, where
# /usr/local/bin holds the built binaries. The machine's files stay untouched.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${FLAN_BIN_DIR:-$here/../target/debug}
for program in systemd-analyze unshare "$bin/fland" "$bin/flanctl"; do
    command -v "$program" >/dev/null || { echo "verify: $program is missing" >&2; exit 1; }
done
units=$(mktemp -d)
trap 'rm -rf "$units"' EXIT

cp "$here/fland.service" "$here/fland-docker.socket" "$here/fland-store.service" \
    "$here/flan-attach.service" "$units/"
mkdir "$units/docker.service.d"
cp "$here/docker.service.d/flan.conf" "$units/docker.service.d/"
# The drop-in needs a docker.service: the machine's, or a short form of it.
for docker in /lib/systemd/system/docker.service /etc/systemd/system/docker.service; do
    [ -f "$docker" ] && cp "$docker" "$units/docker.service" && break
done
[ -f "$units/docker.service" ] || printf '[Service]\nType=notify\nExecStart=dockerd -H fd://\n' >"$units/docker.service"
[ -f /lib/systemd/system/docker.socket ] || printf '[Socket]\nListenStream=/run/docker.sock\n' >"$units/docker.socket"

report=$(SYSTEMD_UNIT_PATH="$units:" unshare --mount sh -euc '
    mount -t tmpfs none /usr/local/bin
    cp "$1/fland" "$1/flanctl" /usr/local/bin/
    systemd-analyze verify "$2/fland.service" "$2/fland-docker.socket" "$2/fland-store.service" \
        "$2/flan-attach.service" "$2/docker.service" 2>&1
' sh "$bin" "$units") || { echo "$report" >&2; exit 1; }
# verify exits with 0 on warnings. Warnings about our files count; those about other units do not.
if echo "$report" | grep -E "fland(-store)?\.service|flan-attach\.service|fland-docker\.socket|flan\.conf|docker\.service"; then exit 1; fi
echo "fland.service, fland-docker.socket, fland-store.service, flan-attach.service, docker.service with flan.conf: verified"
