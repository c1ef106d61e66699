#!/bin/sh
# Customize hook of mmdebstrap: puts Debian's two kernels into the image
# without installing their packages, which would pull in an initramfs
# generator, a boot loader and their triggers.
#   $1     root of the image being made
#   $2...  NAME=SUITE, the kernels to fetch; NAME becomes /boot/NAME
set -eu
root=$1
shift
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"

# A meta package names the image package, and that one (since 7.x) names the
# packages which hold the kernel, its modules and their lists.
versioned() {
	apt-cache depends "$1" |
		sed -nE 's/^ *Depends: (linux-(image|base|binary|modules)-[0-9].*)$/\1/p'
}

for pair in "$@"; do
	name=${pair%%=*} suite=${pair#*=}
	work=$root/tmp/kernel-$name
	mkdir -p "$work/files" "$root/boot/$name"
	chmod 0777 "$work"
	image=$(versioned "linux-image-amd64/$suite")
	[ -n "$image" ] || { echo "E: no kernel in suite $suite" >&2; exit 1; }
	# shellcheck disable=SC2046 # the list is split on purpose
	(cd "$work" && apt-get -q -q download "$image" $(versioned "$image"))
	for deb in "$work"/*.deb; do
		dpkg-deb -x "$deb" "$work/files"
	done
	release=${image#linux-image-}
	for kernel in "$work/files/boot/vmlinuz-$release" "$work/files/usr/lib/modules/$release/vmlinuz"; do
		if [ -f "$kernel" ]; then
			cp "$kernel" "$root/boot/$name/vmlinuz"
		fi
	done
	[ -f "$root/boot/$name/vmlinuz" ] || { echo "E: no vmlinuz in $image" >&2; exit 1; }
	# Nothing in the machine can use these, and they are most of the bytes.
	(cd "$work/files/usr/lib/modules/$release/kernel" &&
		rm -rf sound drivers/gpu drivers/media drivers/staging drivers/net/wireless)
	mkdir -p "$root/usr/lib/modules"
	mv "$work/files/usr/lib/modules/$release" "$root/usr/lib/modules/"
	rm -rf "$work"
	chroot "$root" depmod "$release"
	echo "$release" >"$root/boot/$name/release"
done
# The machine's apt settings were needed for the downloads only.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
