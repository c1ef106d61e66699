#!/bin/sh
# Process 1 of a nested guest once its root is mounted. The kernel's command
# line says what to do:
#   vflab.modules=a,b   modules to load first
#   vflab.exec=PATH     program to run, with the words after "--" as arguments
# Its output goes to the console; when it ends the guest powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=linux LANG=C.UTF-8 VFLAB=1 VFLAB_ROLE=guest
exec </dev/null >/dev/console 2>&1
program=
modules=
read -r cmdline </proc/cmdline
for word in $cmdline; do
	case $word in
	vflab.exec=*) program=${word#*=} ;;
	vflab.modules=*) modules=${word#*=} ;;
	esac
done
ln -sf /proc/self/fd /dev/fd
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug
echo guest >/proc/sys/kernel/hostname
ip link set lo up
if [ -n "$modules" ]; then
	(IFS=,; exec modprobe -a $modules) || echo "vflab: guest: load modules $modules"
fi
status=127
if [ -x "$program" ]; then
	echo "vflab: guest: run $program"
	setsid "$program" "$@" &
	wait $!
	status=$?
else
	echo "vflab: guest: no program at '$program'"
fi
echo "vflab: guest: exit $status"
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1000; done
