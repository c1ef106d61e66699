#!/bin/sh
# Runs on the emulated host: lends a VF to a nested KVM guest by hot-plug, next
# to a bridged NIC, and lets the guest ping a peer on each path.
# The guest runs the same program, with the word "guest".
set -eu
since() { read -r up _ </proc/uptime; echo "nested: $* at ${up}s"; }

if [ "${VFLAB_ROLE:-host}" = guest ]; then
	since guest is up
	mac() { # prints the interface which has the address
		for i in /sys/class/net/*; do
			if [ "$(cat "$i/address")" = "$1" ]; then echo "${i##*/}"; fi
		done
	}
	bridged=$(mac 52:54:00:0c:00:01)
	ip addr add 10.0.2.2/24 dev "$bridged"
	ip link set "$bridged" up
	echo "nested: ready for plug"
	direct=
	n=0
	while [ -z "$direct" ] && [ $n -lt 60 ]; do # the lab has no udev to wait with
		sleep 1
		n=$((n + 1))
		direct=$(mac 52:54:00:0d:00:01)
	done
	[ -n "$direct" ] || { echo "nested: no VF appeared"; exit 1; }
	since VF is here
	ip addr add 10.0.1.2/24 dev "$direct"
	ip link set "$direct" up
	ping -c 3 -W 10 -w 30 10.0.1.1
	ping -c 3 -W 10 -w 30 10.0.2.1
	exit 0
fi

since start
# The guest has its own /tmp and /run: the program must lie elsewhere to be seen there.
mkdir -p /opt && cp "$0" /opt/nested.sh
echo 0 >/sys/bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe
ip link set eth0 up
echo 2 >/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs
ip link set eth0 vf 0 mac 52:54:00:0d:00:01
echo vfio-pci >/sys/bus/pci/devices/0000:01:10.0/driver_override
echo 0000:01:10.0 >/sys/bus/pci/drivers_probe
[ "$(basename "$(readlink /sys/bus/pci/devices/0000:01:10.0/driver)")" = vfio-pci ]
since VF is bound
for peer in 1 3; do
	ip netns add peer$peer
	ip link set eth$peer netns peer$peer
	ip -n peer$peer link set eth$peer up
done
ip -n peer1 addr add 10.0.1.1/24 dev eth1
ip -n peer3 addr add 10.0.2.1/24 dev eth3
ip link add br0 type bridge
ip link set eth2 master br0
ip tuntap add tap0 mode tap
ip link set tap0 master br0
for i in br0 eth2 tap0; do ip link set $i up; done
mkfifo /run/mon.in /run/mon.out
qemu-system-x86_64 -M q35 -accel kvm -cpu host -m 512M -smp 1 -nodefaults -no-user-config -display none \
	-kernel /lab/vmlinuz -initrd /lab/initrd.img \
	-append "console=ttyS0 vflab.role=guest vflab.exec=/opt/nested.sh vflab.modules=virtio_net,igbvf quiet" \
	-fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=root,mount_tag=root \
	-netdev tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=on -device virtio-net-pci,netdev=n0,mac=52:54:00:0c:00:01,romfile= \
	-device pcie-root-port,id=hp0,chassis=10,slot=10 \
	-serial file:/run/console -chardev pipe,id=mon,path=/run/mon -mon chardev=mon &
qemu=$!
cat /run/mon.out >/run/monitor.log &
exec 3>/run/mon.in
n=0
until grep -q 'ready for plug' /run/console 2>/dev/null; do
	n=$((n + 1))
	if [ $n -gt 120 ] || ! kill -0 $qemu; then tail -20 /run/console; exit 1; fi
	sleep 1
done
since guest waits
echo "device_add vfio-pci,host=0000:01:10.0,id=vf0,bus=hp0,rombar=0" >&3
wait $qemu
since guest ended
tr -d '\r' </run/console | grep -v '^\[' | tail -40
cp /run/console "$OUT/guest-console.log"
grep -q 'vflab: guest: exit 0' /run/console
