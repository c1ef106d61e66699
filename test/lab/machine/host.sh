#!/bin/sh
# Process 1 of the emulated host once its root is mounted: prepares the
# machine, runs the command, tells the caller how it ended, powers off.
# Nothing here runs while the command does, except two cats blocked in read(2).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM="${TERM:-linux}" LANG=C.UTF-8

. /lab/config # VFLAB_MODE, VFLAB_HYPERVISOR, VFLAB_STATE_DISK

# Virtio ports by name; there is no udev to make /dev/virtio-ports.
mkdir -p /dev/virtio-ports /dev/pts /dev/shm
for port in /sys/class/virtio-ports/*; do
	name=
	read -r name <"$port/name"
	[ -n "$name" ] && ln -sf "../${port##*/}" "/dev/virtio-ports/$name"
done
exec 9<>/dev/virtio-ports/vflab.control

finish() { # everything written is on its way before the power goes
	sync
	echo end >&9
	echo o >/proc/sysrq-trigger
	while :; do sleep 1000; done
}
die() {
	echo "vflab: $*" >/dev/kmsg
	echo "fail $*" >&9
	finish
}

ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts || die "mount devpts"
ln -sf pts/ptmx /dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run || die "mount tmpfs on /run"
mount -t tmpfs -o mode=1777 tmpfs /tmp || die "mount tmpfs on /tmp"
mount -t debugfs debugfs /sys/kernel/debug || die "mount debugfs"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/netns /run/vflab
echo vflab >/proc/sys/kernel/hostname
echo "127.0.0.1 localhost vflab" >/etc/hosts
ip link set lo up

# Directories of the caller, at their own paths: TAG MODE PATH, a line each.
while read -r tag mode path; do
	mkdir -p "$path" || die "make directory $path"
	opts=trans=virtio,version=9p2000.L,msize=524288
	case $mode in
	ro) opts=$opts,ro,cache=loose ;;
	rw) opts=$opts,rw,cache=mmap ;;
	esac
	mount -t 9p -o "$opts" "$tag" "$path" || die "mount $path by 9p"
done </lab/shares
mkdir -p /out

boot=1
if [ -n "$VFLAB_STATE_DISK" ]; then
	modprobe -a virtio_blk ext4 || die "load the modules of the state disk"
	mkdir -p /run/vflab/state
	blkid -p "$VFLAB_STATE_DISK" >/dev/null || mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 "$VFLAB_STATE_DISK" ||
		die "format the state disk"
	mount -t ext4 "$VFLAB_STATE_DISK" /run/vflab/state || die "mount the state disk"
	mkdir -p /run/vflab/state/lib
	if [ -f /run/vflab/state/boot ]; then
		read -r boot </run/vflab/state/boot
		boot=$((boot + 1))
	fi
	mount --bind /run/vflab/state/lib /var/lib || die "mount /var/lib"
fi
export VFLAB_BOOT=$boot

if [ "$VFLAB_HYPERVISOR" = xen ]; then
	. /lab/xen.sh
else
	modprobe -a igb kvm_amd vfio-pci vhost_net vhost_vsock tun bridge || die "load the host's modules"
fi

read -r release </proc/sys/kernel/osrelease
echo "ready $release $boot" >&9
read -r answer <&9
[ "$answer" = go ] || die "unexpected answer '$answer'"
if [ -n "$VFLAB_STATE_DISK" ]; then # only a boot that runs the command counts
	echo "$boot" >/run/vflab/state/boot.new
	mv /run/vflab/state/boot.new /run/vflab/state/boot
	sync -f /run/vflab/state
fi

if [ "$VFLAB_MODE" = shell ]; then
	setsid /bin/sh -c 'exec 9>&- </dev/hvc0 >/dev/hvc0 2>&1
		. /lab/config
		stty rows "$VFLAB_ROWS" cols "$VFLAB_COLUMNS" 2>/dev/null
		exec /lab/run.sh' &
	wait $!
	echo "exit $?" >&9
	finish
fi

# Pipes, not the ports themselves: a port can be opened only once, so
# /dev/stdout would fail.
mkfifo /run/vflab/stdout /run/vflab/stderr
cat /run/vflab/stdout >/dev/virtio-ports/vflab.stdout 9>&- &
pump1=$!
cat /run/vflab/stderr >/dev/virtio-ports/vflab.stderr 9>&- &
pump2=$!
setsid /lab/run.sh </dev/null >/run/vflab/stdout 2>/run/vflab/stderr 9>&- &
wait $!
echo "exit $?" >&9
# What the command left running holds the pipes open: end it, then drain. One
# that was started while we looked is seen the next time. A kernel thread and
# what has ended have no exe.
left=yes
while [ -n "$left" ]; do
	left=
	for dir in /proc/[0-9]*; do
		case ${dir#/proc/} in
		1 | "$pump1" | "$pump2") ;;
		*) [ -e "$dir/exe" ] && kill -KILL "${dir#/proc/}" 2>/dev/null && left=yes ;;
		esac
	done
done
wait "$pump1" "$pump2"
finish
