#!/bin/sh
# Fetches the CNI plugin flannel, and keeps it. Debian 11's package containernetworking-plugins is the last that has it:
# flannel's project publishes it by itself since, and Debian does not. Prints the path of a directory that holds it
# alone; quick when it is there.
#
# The directory is /var/cache/flan/flannel-plugin-ARCH; FLAN_FLANNEL_PLUGIN names another.
set -eu

release=bullseye
package=containernetworking-plugins
dir=$(realpath -m "${FLAN_FLANNEL_PLUGIN:-/var/cache/flan/flannel-plugin-$(dpkg --print-architecture)}")
if [ -x "$dir/flannel" ]; then echo "$dir"; exit 0; fi

fail() { echo "$0: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "there is no $dir/flannel yet, and fetching it needs root: sudo $0"
mkdir -p "$dir"
exec 9>"$dir/.lock"
flock 9
if [ -x "$dir/flannel" ]; then echo "$dir"; exit 0; fi

# The machine's own mirror, if it is a Debian.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null \
    | sed -n 's/ Debian Debian$//p' | head -n 1) || mirror=
mirror=${mirror:-http://deb.debian.org/debian/}

# An apt of its own, which checks the release's signature and leaves the machine's lists alone.
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/none"
: > "$apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" > "$apt/sources.list"
cat > "$apt/apt.conf" <<C
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/none";
Dir::Etc::preferencesparts "$apt/none";
APT::Sandbox::User "root";
Acquire::Languages "none";
C
export APT_CONFIG="$apt/apt.conf"

echo "Fetching the CNI plugin flannel of Debian $release from $mirror (25 MB)" >&2
cd "$apt"
if ! { apt-get -qq update && apt-get -qq download "$package"; } >"$apt/log" 2>&1 </dev/null; then
    cat "$apt/log" >&2
    fail "cannot fetch $package of $release"
fi
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO ./usr/lib/cni/flannel > "$dir/.new"
chmod 755 "$dir/.new"
mv "$dir/.new" "$dir/flannel"
echo "$dir"
