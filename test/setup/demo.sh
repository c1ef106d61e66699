#!/bin/sh
# What `make demo` runs inside the emulated host, as root: the daemon, a carve,
# a guest, a lease, the measurement, the scrub; under Xen a guest of each kind. Programs come from PATH, files
# go to $OUT.
set -eu

pf=mac:52:54:00:0a:00:01      # to be carved
peer=52:54:00:0a:00:02        # on its segment
uplink=52:54:00:0b:00:01      # of the bridge, on a segment of its own
bridge_peer=52:54:00:0b:00:02
vfs=7
out=${OUT:?directory for the report}
config=/etc/vfbroker/config.yaml
daemon=
case ${VFLAB_HYPERVISOR:-kvm} in
xen)
	guests="a PV and an HVM guest, one after the other"
	names=-xen # of the files in $out
	;;
*)
	guests="a guest"
	names=
	;;
esac

heading() { printf '\n== %s\n\n' "$*"; }
stage() { stage=$*; heading "$*"; }
stop_daemon() {
	[ -n "$daemon" ] || return 0
	kill -TERM "$daemon" 2>/dev/null || true
	wait "$daemon" || true
	daemon=
}
failed() {
	status=$?
	stop_daemon
	[ "$status" -eq 0 ] && return
	printf '\ndemo: stopped at: %s\n' "$stage" >&2
	if [ -s /run/vfbrokerd.log ]; then
		printf '%s\n' '--- the end of the daemon'\''s log ---' >&2
		tail -n 30 /run/vfbrokerd.log >&2
	fi
	exit 1
}
trap failed EXIT
trap 'exit 130' INT TERM

# A PF by its permanent address: no udev gives it a name here.
netdev() {
	for dir in /sys/class/net/*; do
		if [ -e "$dir/device" ] && [ "$(cat "$dir/address")" = "$1" ]; then
			echo "${dir##*/}"
			return
		fi
	done
	echo "demo: no NIC has the address $1" >&2
	return 1
}
pf_netdev=$(netdev "${pf#mac:}")
pf_device=$(readlink -f "/sys/class/net/$pf_netdev/device")

stage "The daemon: it may touch one PF, and nothing else"
mkdir -p /etc/vfbroker/guests
chmod 0700 /etc/vfbroker/guests
cat >"$config" <<END
pfs:
  - pf: $pf
guests_dir: /etc/vfbroker/guests
END
cat "$config"
ip link set "$pf_netdev" up
vfbrokerd --config "$config" >/run/vfbrokerd.log 2>&1 &
daemon=$!
tries=0
until vfbroker leases >/dev/null 2>&1; do
	tries=$((tries + 1))
	if [ "$tries" -gt 100 ] || ! kill -0 "$daemon" 2>/dev/null; then
		echo "demo: the daemon does not answer" >&2
		exit 1
	fi
	sleep 0.2
done

stage "What this host can do"
vfbroker doctor || echo "(doctor: exit $?)"

stage "What it has"
vfbroker inventory

stage "Carve $vfs VFs, first as a plan"
vfbroker carve "$pf" "$vfs" --dry-run
vfbroker carve "$pf" "$vfs"
vfbroker inventory "$pf"

stage "Boot $guests, lend it a VF, measure, take the VF back"
vfbench run --pf "$pf" --peer "$peer" --uplink "$uplink" --bridge-peer "$bridge_peer" \
	--kernel "${VFLAB_GUEST_KERNEL:-/lab/vmlinuz}" --json "$out/result$names.json" --html "$out/report$names.html" >"$out/report$names.txt"

stage "After the release: the lease is closed, the VF scrubbed and free again"
vfbroker leases --all
vfbroker inventory "$pf"

stage "Give the VFs back and stop the daemon"
vfbroker carve "$pf" 0
stop_daemon

running() { # guests of the hypervisor
	case ${VFLAB_HYPERVISOR:-kvm} in
	xen) xl list | tail -n +3 | wc -l ;; # below the heading and Domain-0
	*) ls -d /sys/kernel/debug/kvm/*-* 2>/dev/null | wc -l ;;
	esac
}
left=0
for what in "VFs: $(cat "$pf_device/sriov_numvfs")" \
	"guests: $(ls /etc/vfbroker/guests | wc -l)" \
	"guests that run: $(running)" \
	"NICs away: $(( 4 - $(ls -d /sys/class/net/*/device | wc -l) ))" \
	"functions at pciback: $(ls -d /sys/bus/pci/drivers/pciback/*:* 2>/dev/null | wc -l)" \
	"bridges and taps: $(ip -o link show | grep -c 'vfb-' || true)"; do
	echo "left behind: $what"
	[ "${what##* }" = 0 ] || left=1
done
if [ "$left" -ne 0 ]; then
	echo "demo: something is left behind" >&2
	exit 1
fi

heading "Result"
cat "$out/report$names.txt"
