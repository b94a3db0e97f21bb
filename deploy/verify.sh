#!/bin/sh
# Checks the units with systemd-analyze, as they stand once everything is installed. Needs root for a mount namespace
# of its own, in which /usr/local/bin holds the binaries that were built; the machine's own files are not touched.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=${FLAN_BIN_DIR:-$here/../target/debug}
for program in systemd-analyze unshare "$bin/fland" "$bin/flanctl"; do
    command -v "$program" >/dev/null || { echo "verify: $program is missing" >&2; exit 1; }
done
units=$(mktemp -d)
trap 'rm -rf "$units"' EXIT

cp "$here/fland.service" "$here/fland-store.service" "$units/"
mkdir "$units/docker.service.d"
cp "$here/docker.service.d/flan.conf" "$units/docker.service.d/"
# The drop-in needs a unit to drop into; Debian's, or the same in short where Docker came another way.
for docker in /lib/systemd/system/docker.service /etc/systemd/system/docker.service; do
    [ -f "$docker" ] && cp "$docker" "$units/docker.service" && break
done
[ -f "$units/docker.service" ] || printf '[Service]\nType=notify\nExecStart=dockerd -H fd://\n' >"$units/docker.service"
[ -f /lib/systemd/system/docker.socket ] || printf '[Socket]\nListenStream=/run/docker.sock\n' >"$units/docker.socket"

report=$(SYSTEMD_UNIT_PATH="$units:" unshare --mount sh -euc '
    mount -t tmpfs none /usr/local/bin
    cp "$1/fland" "$1/flanctl" /usr/local/bin/
    systemd-analyze verify "$2/fland.service" "$2/fland-store.service" "$2/docker.service" 2>&1
' sh "$bin" "$units") || { echo "$report" >&2; exit 1; }
# verify exits with 0 on warnings; those about our own files count. Other units of the machine are not ours.
if echo "$report" | grep -E "fland(-store)?\.service|flan\.conf|docker\.service"; then exit 1; fi
echo "fland.service, fland-store.service and docker.service with flan.conf: verified"
