# What makes dom0 of the emulated host's Linux; read by host.sh. There are no init
# scripts, so the toolstack's daemons are started here.
modprobe -a igb tun bridge xen-evtchn xen-gntdev xen-privcmd xen-pciback xen-netback || die "load dom0's modules"
mount -t xenfs xenfs /proc/xen || die "mount xenfs"
mkdir -p /run/lock /run/xen /run/xenstored /var/log/xen /var/lib/xen
xenstored --pid-file /run/xenstored.pid 9>&- || die "start xenstored"
/usr/lib/xen-*/bin/xen-init-dom0 >/dev/null 9>&- || die "register dom0"
mkdir -p /var/log/xen/console
xenconsoled --log=guest --pid-file=/run/xenconsoled.pid 9>&- || die "start xenconsoled"
