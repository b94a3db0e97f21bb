#!/bin/sh
# The first process of the virtual machine: lays a layer that can be written over the shared /, and goes there.
fail() {
    echo "flan: $*" > /dev/kmsg
    exec busybox poweroff -f
}
export PATH=/bin

busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
while read -r module; do
    busybox insmod "/modules/$module" || fail "cannot load $module"
done < /modules/order

busybox mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,ro,msize=512000 root /below \
    || fail "cannot mount the shared /"
# Written to memory, or to the disk, which keeps it over a reboot.
if [ -e /dev/vda ]; then
    busybox mount -t ext4 /dev/vda /above || fail "cannot mount the disk"
else
    busybox mount -t tmpfs -o size=75% above /above
fi
busybox mkdir -p /above/upper /above/work
busybox mount -t overlay -o lowerdir=/below,upperdir=/above/upper,workdir=/above/work overlay /merged \
    || fail "cannot mount the root"

for kept in proc sys dev; do busybox mount --move /$kept /merged/$kept; done
busybox mount -t tmpfs -o mode=755 run /merged/run
busybox mkdir /merged/run/flan
busybox cp /job /merged/run/flan/job
exec busybox switch_root /merged /bin/sh /run/flan/job
