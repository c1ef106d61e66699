// Package lab is the emulated SR-IOV host: a Debian image, and machines that
// QEMU runs from it. A machine has four igb NICs with virtual functions, an
// IOMMU, and AMD's virtualisation, so that the kernel in it is a real host:
// sriov_numvfs, IOMMU groups, vfio-pci, KVM with nested guests. Only the
// silicon is emulated; every number measured in it carries Result.Label.
//
// QEMU runs from the image too, so the user's distribution does not matter.
// Nothing a run mounts is seen outside it, and nothing stays when the process
// that started it dies, by whatever signal.
//
// A nested guest can use /lab/vmlinuz and /lab/initrd.img, with the host's
// root exported read-only by 9p under the mount tag "root" and the kernel
// arguments "vflab.role=guest vflab.exec=PROGRAM [vflab.modules=A,B] [-- ARGS]".
package lab
