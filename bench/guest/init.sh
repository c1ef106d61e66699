#!/bin/sh
# Process 1 of a throw-away guest. The shim takes its place; when it ends the
# kernel panics, and panic=-1 with QEMU's -no-reboot ends the guest.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
	$b insmod "$module" || echo "guest: load $module"
done
$b ip link set lo up
if [ -n "$guest_shell" ]; then
	$b setsid $b sh -c "$b stty -echo -opost; exec $b sh" <>/dev/$guest_shell >&0 2>/dev/null &
fi
echo "guest: ready for the shim"
exec /bin/vfshim serve --bench
