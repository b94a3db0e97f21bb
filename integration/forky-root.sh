#!/bin/sh
# Makes a root directory of Debian forky with its Docker, etcd and wireguard-go, and keeps it. The scenarios start
# dockerd from it, the conformance suite etcd, the bench wireguard-go. Prints the directory's path; quick when it is there.
#
# The directory is /var/cache/flan/forky-ARCH-CHECKSUM, with the checksum of the list of packages, so that trees with
# different lists do not take each other's root away. FLAN_FORKY_ROOT names another. Nobody writes into it once it is
# made; to get what forky has by then, remove it and run this again.
set -eu

PATH=$PATH:/usr/sbin:/sbin

release=forky
packages=docker.io,docker-cli,iptables,nftables,iproute2,etcd-server,etcd-client,wireguard-go

arch=$(dpkg --print-architecture)
checksum=$(printf %s "$packages" | cksum | cut -d ' ' -f 1)
# Without a slash at its end and without links: names beside it are made by adding to it.
root=$(realpath -m "${FLAN_FORKY_ROOT:-/var/cache/flan/$release-$arch-$checksum}")
# In the root, written last: what it was asked to hold. Below it, for a person, the versions that it got.
stamp=.flan-root
wanted="$release $arch $packages"

fail() { echo "$0: $*" >&2; exit 1; }

is_made() { [ "$(head -n 1 "$root/$stamp" 2>/dev/null)" = "$wanted" ]; }

if is_made; then echo "$root"; exit 0; fi

[ "$(id -u)" = 0 ] || fail "there is no $root yet, and making it needs root: sudo $0"
for program in debootstrap flock unshare; do
    command -v "$program" >/dev/null || fail "$program is missing: integration/install-tools.sh gets it"
done

mkdir -p "$(dirname "$root")"
exec 9>"$root.flan-lock"
if ! flock -n 9; then
    echo "Waiting for another run that makes $root" >&2
    flock 9
    if is_made; then echo "$root"; exit 0; fi
fi

# Replaced is only what this script has made: the variable may name anything.
if [ -e "$root" ] && [ ! -e "$root/$stamp" ]; then
    fail "$root was not made by this script; name a directory that does not exist in FLAN_FORKY_ROOT"
fi

# What becomes the root once it is complete. What an earlier run did not complete is deleted: nobody but this script
# gives a directory that name.
new=$root.flan-new
rm -rf --one-file-system "$new"

# The machine's own mirror, if it is a Debian.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null \
    | sed -n 's/ Debian Debian$//p' | head -n 1) || mirror=
mirror=${mirror:-http://deb.debian.org/debian/}

echo "Making a root of Debian $release in $root, from $mirror (a minute or two, 650 MB)" >&2
mkdir -m 755 "$new"
log=$new.log

# What it does, when it does it for the first time: "I: Retrieving Packages", "I: Unpacking docker.io...".
show_progress() {
    seen=
    while read -r _ verb _; do
        case $verb in Retrieving|Extracting|Unpacking|Configuring) ;; *) continue ;; esac
        case $seen in *$verb*) continue ;; esac
        seen="$seen $verb"
        echo "  $verb packages" >&2
    done
}

# In namespaces of its own, so that no mount and no process of it is left, however it ends. The script for sid is that of
# every release, and debootstrap may be older than this one.
debootstrap_forky() {
    unshare --mount --pid --fork --kill-child --mount-proc debootstrap --variant=minbase --include="$packages" \
        --force-check-gpg "$release" "$new" "$mirror" /usr/share/debootstrap/scripts/sid 2>&1
}
status=$( { { debootstrap_forky || echo "$?" >&3; } | tee "$log" | show_progress; } 3>&1 )
if [ -n "$status" ]; then
    grep '^[EW]:' "$log" >&2 || tail -n 20 "$log" >&2
    fail "debootstrap of $release from $mirror failed with $status; see $log and $new/debootstrap/debootstrap.log"
fi
rm -f "$log"

versions=$(sed -n '/^Package: \(docker\.io\|etcd-server\)$/,/^$/s/^\(Package\|Version\): //p' "$new/var/lib/dpkg/status")
printf '%s\n%s\n' "$wanted" "$versions" > "$new/$stamp"

rm -rf --one-file-system "$root"
mv "$new" "$root"
echo "$root"
