#!/bin/sh
# Runs QEMU from the image, in mount and process namespaces of its own (the
# caller has made them; process 1 here is QEMU in the end). Nothing that is
# mounted here is seen outside, and it goes when QEMU does.
#   $1 directory to build the new root on   $2 image root   $3 lab directory
#   $4 QEMU's arguments, one a line         $5... directories to share
set -eu
jail=$1 image=$2 lab=$3 arguments=$4
shift 4
mount --make-rprivate /
mount -t tmpfs -o mode=0755,size=16m vflab "$jail"
cd "$jail"
mkdir usr proc dev image lab share tmp
for dir in bin sbin lib lib64; do
	ln -s "usr/$dir" "$dir"
done
bind() { # FROM TO ro|rw
	mount --rbind "$1" "$2"
	if [ "$3" = ro ]; then
		mount -o remount,bind,ro "$2"
	fi
}
bind "$image/usr" usr ro
bind "$image" image ro
bind "$lab" lab ro
n=0
for dir in "$@"; do
	mkdir "share/$n"
	bind "${dir#??:}" "share/$n" "${dir%%:*}"
	n=$((n + 1))
done
mount -t proc proc proc
for node in null zero random urandom; do
	: >"dev/$node"
	mount --bind "/dev/$node" "dev/$node"
done
set --
while IFS= read -r argument; do
	set -- "$@" "$argument"
done <"$arguments"
exec chroot "$jail" /usr/bin/qemu-system-x86_64 "$@"
