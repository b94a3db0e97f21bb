#!/bin/sh
# Fetches a kernel of Debian with its modules and keeps it for later runs: `vm` boots it. Nothing is installed. Prints
# the directory, which holds `vmlinuz` and `lib/modules/VERSION`. Quick when it is there.
#
# FLAN_VM_KERNEL names the release: bookworm (the default), trixie or forky. The directory is
# /var/cache/flan/kernel-RELEASE-ARCH-CHECKSUM, with the checksum of the list of deleted modules, so that trees with
# different lists do not take each other's kernel away. Nobody writes into it once it is made. To get what the release
# has by then, remove it and run this again.
set -eu

PATH=$PATH:/usr/sbin:/sbin

release=${FLAN_VM_KERNEL:-bookworm}
# What a machine without hardware does not use, below the directory of the modules: most of the 400 MB.
deleted='sound drivers/gpu drivers/media drivers/infiniband drivers/net/wireless drivers/net/ethernet drivers/iio
drivers/staging drivers/scsi drivers/usb drivers/hwmon drivers/input drivers/isdn drivers/mmc drivers/bluetooth
drivers/hid drivers/ata drivers/mtd drivers/platform drivers/accel fs/xfs fs/btrfs fs/ocfs2 fs/gfs2 fs/ceph fs/bcachefs
net/bluetooth net/wireless net/mac80211 net/ceph'

fail() { echo "$0: $*" >&2; exit 1; }

case $release in
    bookworm|trixie) archives="main security" ;;
    forky) archives=main ;;
    *) fail "FLAN_VM_KERNEL is $release; expected bookworm, trixie or forky" ;;
esac

arch=$(dpkg --print-architecture)
checksum=$(printf %s "$deleted" | cksum | cut -d ' ' -f 1)
dir=/var/cache/flan/kernel-$release-$arch-$checksum
# In the directory, written last: the names of the packages.
stamp=.flan-kernel

is_made() { [ -e "$dir/$stamp" ]; }

if is_made; then echo "$dir"; exit 0; fi

[ "$(id -u)" = 0 ] || fail "there is no $dir yet, and making it needs root: sudo $0"
for program in apt-get dpkg-deb depmod flock; do
    command -v "$program" >/dev/null || fail "$program is missing: integration/install-tools.sh gets it"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keyring" ] || fail "$keyring is missing: integration/install-tools.sh gets it"

mkdir -p "$(dirname "$dir")"
exec 9>"$dir.flan-lock"
if ! flock -n 9; then
    echo "Waiting for another run that makes $dir" >&2
    flock 9
    if is_made; then echo "$dir"; exit 0; fi
fi

# What becomes the directory once it is complete. What an earlier run did not complete is deleted: nobody but this script
# gives a directory that name.
new=$dir.flan-new
rm -rf "$new"
mkdir -p -m 755 "$new/apt/lists/partial" "$new/apt/cache/archives/partial" "$new/apt/etc/none"

# The machine's own mirror, if it is a Debian.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null \
    | sed -n 's/ Debian Debian$//p' | head -n 1) || mirror=
mirror=${mirror:-http://deb.debian.org/debian/}

for archive in $archives; do
    case $archive in
        main) echo "deb [signed-by=$keyring] $mirror $release main" ;;
        # Beside the other on every mirror that has it.
        security) echo "deb [signed-by=$keyring] ${mirror%debian/}debian-security/ $release-security main" ;;
    esac
done > "$new/apt/etc/sources.list"

# An apt that knows this release alone; the machine's lists, packages and settings stay as they are.
private_apt() {
    apt-get -q -o Dir::Etc="$new/apt/etc" -o Dir::Etc::SourceParts=none -o Dir::Etc::PreferencesParts=none \
        -o Dir::State="$new/apt" -o Dir::State::Lists="$new/apt/lists" -o Dir::State::status=/dev/null \
        -o Dir::Cache="$new/apt/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none \
        -o Acquire::Retries=3 "$@"
}

echo "Fetching the kernel of Debian $release into $dir, from $mirror (100 MB)" >&2
log=$new/apt/log
quietly() {
    if ! "$@" > "$log" 2>&1; then
        cat "$log" >&2
        fail "failed: $*"
    fi
}
quietly private_apt update

# The package linux-image-ARCH is empty and depends on that of the current version, which newer releases split into
# several of the same version. Nothing is installed here.
quietly private_apt --simulate --no-install-recommends install "linux-image-$arch"
version=$(sed -n 's/^Inst linux-image-\([0-9][^ ]*\) .*/\1/p' "$log" | head -n 1)
[ -n "$version" ] || fail "linux-image-$arch of Debian $release depends on no kernel; see $log"
packages=$(sed -n 's/^Inst \(linux-[a-z]*-[^ ]*\) .*/\1/p' "$log" | grep -F -e "-$version")
cd "$new/apt/cache"
# shellcheck disable=SC2086 # one word a package
quietly private_apt download $packages
for package in ./*.deb; do quietly dpkg-deb -x "$package" "$new"; done
cd /

# Newer releases have everything below /usr, and the kernel beside its modules.
if [ -d "$new/usr/lib/modules" ]; then
    mkdir -p "$new/lib"
    mv "$new/usr/lib/modules" "$new/lib/modules"
fi
for kernel in "$new/boot/vmlinuz-$version" "$new/lib/modules/$version/vmlinuz"; do
    if [ -f "$kernel" ]; then mv "$kernel" "$new/vmlinuz"; fi
done
[ -e "$new/vmlinuz" ] || fail "no vmlinuz is in: $packages"
rm -rf "$new/usr" "$new/etc" "$new/boot"
for part in $deleted; do rm -rf "$new/lib/modules/$version/kernel/$part"; done
quietly depmod -b "$new" "$version"

printf '%s\n' "$packages" > "$new/$stamp"
rm -rf "$new/apt" "$dir"
mv "$new" "$dir"
echo "$dir"
