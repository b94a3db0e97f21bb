#!/bin/sh
# Installs, by apt, what building flan and running its demo, tests and bench need and this machine lacks.
# Quick when all is there; starts no service; becomes root by sudo only if something is missing.
#
# --without-etcd: neither etcd nor its command line
# --to-build: only what building needs
set -eu

etcd=yes
tests=yes
case "${1:-}" in
    '') ;;
    --without-etcd) etcd= ;;
    --to-build) tests= ;;
    *) echo "$0: $1 is no option; expected --without-etcd, --to-build or nothing" >&2; exit 2 ;;
esac

PATH=$PATH:/usr/sbin:/sbin

lacks() { ! command -v "$1" >/dev/null 2>&1; }

packages=
want() { case " $packages " in *" $1 "*) ;; *) packages="$packages $1" ;; esac; }

# A C compiler and linker for the crates that build C code.
if lacks cc; then want gcc; want libc6-dev; fi
if lacks protoc; then want protobuf-compiler; fi
# The well-known types that etcd's protocol imports; a package of its own.
[ -e /usr/include/google/protobuf/descriptor.proto ] || want libprotobuf-dev
if [ -n "$tests" ]; then
    if [ -n "$etcd" ] && lacks etcd; then want etcd-server; fi
    if [ -n "$etcd" ] && lacks etcdctl; then want etcd-client; fi
    if lacks ip || lacks bridge; then want iproute2; fi
    if lacks nft; then want nftables; fi
    if lacks iptables; then want iptables; fi
    if lacks ping; then want iputils-ping; fi
    # Containers hold nothing but busybox, so one that is linked dynamically will not do.
    if lacks busybox || head -c 4096 "$(command -v busybox)" | grep -aq /ld-linux; then want busybox-static; fi
    # Any Docker will do; a second one would fight with it over the same files.
    if lacks dockerd; then want docker.io; fi
    # From Debian 13 on the command line is a package of its own.
    if lacks docker && apt-cache show docker-cli >/dev/null 2>&1; then want docker-cli; fi
    # Where the kernel has AppArmor, dockerd wants to load its profile.
    if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ] && lacks apparmor_parser; then want apparmor; fi
    if lacks systemd-analyze; then want systemd; fi
    # What forky-root.sh makes its root with.
    if lacks debootstrap; then want debootstrap; fi
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || want debian-archive-keyring
    if lacks openssl; then want openssl; fi
    # A library that sets the clock of one program wrong.
    ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || want libfaketime
    # The virtual machine, its modules, and its kernel's archive.
    if lacks qemu-system-x86_64 && [ "$(uname -m)" = x86_64 ]; then want qemu-system-x86; fi
    if lacks modprobe; then want kmod; fi
    if lacks mkfs.ext4; then want e2fsprogs; fi
    # What looks at WireGuard from outside, and what speaks it besides the kernel and flan.
    if lacks wg; then want wireguard-tools; fi
    if lacks wireguard-go; then want wireguard-go; fi
    if lacks tcpdump; then want tcpdump; fi
    # The DNS server of a site, and a resolver that is not glibc's.
    if lacks dnsmasq; then want dnsmasq-base; fi
    if lacks musl-gcc; then want musl-tools; fi
    # Applications of several services. From Debian 13 on it is another program with the same command line.
    if lacks docker-compose; then want docker-compose; fi
    # What reads the agents' metrics.
    if lacks prometheus || lacks promtool; then want prometheus; fi
    # Containers without Docker, connected by CNI plugins.
    if lacks podman; then want podman; fi
    if lacks runc; then want runc; fi
    [ -x /usr/lib/cni/bridge ] || want containernetworking-plugins
    # The benches alone run these. Debian's iperf3 asks whether to run as a daemon; noninteractive answers no.
    if lacks iperf3; then want iperf3; fi
    if lacks ethtool; then want ethtool; fi
    if lacks strace; then want strace; fi
    if lacks dnsperf; then want dnsperf; fi
fi

[ -n "$packages" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    if ! lacks sudo; then exec sudo "$0" "$@"; fi
    echo "missing:$packages; as root: apt-get install$packages" >&2
    exit 1
fi
if lacks apt-get; then
    echo "this machine has no apt-get; install by its own means:$packages" >&2
    exit 1
fi

echo "Installing:$packages"

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
own=

clean_up() {
    if [ -n "$own" ]; then rm -f "$policy"; fi
    if [ -n "$own" ] && [ -e "$policy.before-flan" ]; then mv "$policy.before-flan" "$policy"; fi
    rm -f "$log"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The demo starts its own etcd and dockerds; the machine's must not start because of it. invoke-rc.d asks this file.
# One that we wrote ourselves is of a run that was killed, and what it had replaced lies beside it.
if grep -qs flan-install "$policy"; then
    rm -f "$policy"
elif [ -e "$policy" ] || [ -L "$policy" ]; then
    mv "$policy" "$policy.before-flan"
fi
own=yes
printf '#!/bin/sh\n# flan-install: gone when it has ended\nexit 101\n' > "$policy"
chmod 755 "$policy"

quietly() {
    if ! DEBIAN_FRONTEND=noninteractive "$@" > "$log" 2>&1 < /dev/null; then
        cat "$log" >&2
        echo "failed: $*" >&2
        return 1
    fi
}

# The lists on the machine may do; ask for new ones only if they do not.
# shellcheck disable=SC2086 # one word a package
install() { apt-get install -y --no-install-recommends $packages; }
if ! DEBIAN_FRONTEND=noninteractive install > "$log" 2>&1 < /dev/null; then
    quietly apt-get update
    quietly install
fi

# Nor at the next start of the machine.
switch_off() { systemctl disable "$@" >/dev/null 2>&1 || true; }
case " $packages " in *" etcd-server "*) switch_off etcd ;; esac
case " $packages " in *" docker.io "*) switch_off docker.service docker.socket containerd.service ;; esac
case " $packages " in *" podman "*) switch_off podman.service podman.socket podman-auto-update.timer podman-restart.service ;; esac
case " $packages " in *" prometheus "*) switch_off prometheus ;; esac
case " $packages " in *" iperf3 "*) switch_off iperf3 ;; esac
