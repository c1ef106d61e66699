package fakehost

import (
	"strings"

	"vfbroker/sriov/sysfs"
)

// Uevents returns a new stream of the host's kernel messages. A reader that
// falls behind by more than size messages loses some and gets one Lost.
func (h *Host) Uevents(size int) <-chan sysfs.Uevent {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := make(chan sysfs.Uevent, size+1)
	h.watchers = append(h.watchers, w)
	return w
}

// LoseUevents tells every reader that messages were lost (ENOBUFS).
func (h *Host) LoseUevents() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.send(sysfs.Uevent{Lost: true})
}

func (h *Host) emit(action string, d *device) {
	h.send(sysfs.Uevent{Action: action, Subsystem: "pci", DevPath: strings.TrimPrefix(d.path, "/sys"), PCI: d.addr, Driver: d.driver})
}

func (h *Host) emitNet(action string, d *device) {
	h.send(sysfs.Uevent{Action: action, Subsystem: "net", DevPath: strings.TrimPrefix(d.netDir(), "/sys"), PCI: d.addr,
		Interface: d.netdev.name, Ifindex: d.netdev.ifindex})
}

// send keeps the last place of every stream for Lost, so that it always arrives.
func (h *Host) send(e sysfs.Uevent) {
	for _, w := range h.watchers {
		switch free := cap(w) - len(w); {
		case free > 1:
			w <- e
		case free == 1:
			w <- sysfs.Uevent{Lost: true}
		}
	}
}
