#!/bin/busybox sh
# First process of the emulated host and of its nested guests: mounts the root
# by 9p, or from the disk that vflab.root names, with a writable layer in memory, then hands over to /lab/<role>.sh.
b=/bin/busybox
die() {
	echo "vflab: init: $*" >/dev/kmsg
	$b sleep 1
	echo o >/proc/sysrq-trigger
	while :; do $b sleep 1000; done
}
$b mkdir -p /proc /sys /dev /lower /upper /root
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev 2>/dev/null
role=host
disk=
read -r cmdline </proc/cmdline
for word in $cmdline; do
	case $word in
	vflab.role=*) role=${word#*=} ;;
	vflab.root=*) disk=/dev/${word#*=} ;;
	esac
done
while read -r module; do
	$b insmod "/modules/$module" || die "load module $module"
done </modules/order
opts=trans=virtio,version=9p2000.L,msize=524288,cache=loose
if [ -n "$disk" ]; then
	$b mount -t ext4 -o ro "$disk" /lower || die "mount the root from $disk"
else
	$b mount -t 9p -o "$opts,ro" root /lower || die "mount the root by 9p"
fi
$b mount -t tmpfs -o mode=0755 tmpfs /upper || die "mount tmpfs"
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root || die "mount the overlay"
$b mkdir -p /root/proc /root/sys /root/dev /root/lab
if [ "$role" = host ]; then
	$b mount -t 9p -o "$opts,ro" lab /root/lab || die "mount /lab by 9p"
fi
for dir in proc sys dev; do
	$b mount -o move "/$dir" "/root/$dir"
done
[ -x "/root/lab/$role.sh" ] || die "unknown role $role"
exec $b switch_root /root "/lab/$role.sh" "$@"
