# What the virtual machine does once it has its root. Called by systemd again, as the unit, with the argument `run`.
# Before these lines: settings of this run.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-linux}"

# The device of the channel of this name.
channel() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name")" = "flan.$1" ]; then echo "/dev/${port##*/}"; fi
    done
}

end() {
    echo "$1" > "$(channel code)"
    exec busybox poweroff -f
}

run() {
    cd "$directory" || end 1
    # By a pipe, which programs may open again, unlike the channel. What they leave running may keep the pipe open.
    mkfifo /run/flan/output
    cat < /run/flan/output > "$(channel output)" &
    printer=$!
    (program) > /run/flan/output 2>&1 < /dev/null
    code=$?
    timeout 5 tail --sleep-interval=0.1 --pid="$printer" -f /dev/null
    end "$code"
}

if [ "${1:-}" = run ]; then run; fi

mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /lib/modules
mount --bind "$modules" /lib/modules
# What nothing asks for before its device is opened.
modprobe -a tun loop
ip link set lo up
hostname vm

case $kind in
    program) run ;;
    shell)
        cd "$directory" || end 1
        # shellcheck disable=SC2086 # two words
        [ -z "$size" ] || stty -F /dev/hvc0 $size
        setsid --ctty --wait "${SHELL:-/bin/sh}" -i < /dev/hvc0 > /dev/hvc0 2>&1
        end $?
        ;;
esac

# systemd. The machine's own services and mounts do not belong here, only what Debian's packages start by themselves.
if [ ! -e /etc/systemd/system/flan-vm.service ]; then
    rm -rf /etc/systemd/system /etc/systemd/network
    mkdir -p /etc/systemd/system/multi-user.target.wants
    : > /etc/fstab
    # /tmp holds what this machine has there, perhaps the tree: it is not emptied.
    mkdir -p /etc/tmpfiles.d
    ln -sf /dev/null /etc/tmpfiles.d/tmp.conf
    # By this file, where the shared / is that of a container, systemd would take itself to be in one, and sync no disk.
    rm -f /.dockerenv
    cat > /etc/systemd/system/flan-vm.service <<'UNIT'
[Unit]
Description=What the virtual machine runs
[Service]
ExecStart=/bin/sh /run/flan/job run
UNIT
    ln -s ../flan-vm.service /etc/systemd/system/multi-user.target.wants/flan-vm.service
fi
exec /lib/systemd/systemd
