package fakehost

import (
	"strings"

	"vfbroker/sriov"
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
	send(h.watchers, sysfs.Uevent{Lost: true}, sysfs.Uevent{Lost: true})
}

// Links returns a new stream of what rtnetlink tells of interfaces, with the
// same size and losses as Uevents.
func (h *Host) Links(size int) <-chan sriov.LinkEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := make(chan sriov.LinkEvent, size+1)
	h.linkWatchers = append(h.linkWatchers, w)
	return w
}

// LoseLinks is LoseUevents for Links.
func (h *Host) LoseLinks() {
	h.mu.Lock()
	defer h.mu.Unlock()
	send(h.linkWatchers, sriov.LinkEvent{Lost: true}, sriov.LinkEvent{Lost: true})
}

func (h *Host) emit(action string, d *device) {
	e := sysfs.Uevent{Action: action, Subsystem: "pci", DevPath: strings.TrimPrefix(d.path, "/sys"), PCI: d.addr, Driver: d.driver}
	send(h.watchers, e, sysfs.Uevent{Lost: true})
}

// emitNet tells that an interface came, went or changed: rtnetlink does so each time too.
func (h *Host) emitNet(action string, d *device) {
	e := sysfs.Uevent{Action: action, Subsystem: "net", DevPath: strings.TrimPrefix(d.netDir(), "/sys"), PCI: d.addr,
		Interface: d.netdev.name, Ifindex: d.netdev.ifindex}
	send(h.watchers, e, sysfs.Uevent{Lost: true})
	h.emitLink(d)
}

func (h *Host) emitLink(d *device) {
	send(h.linkWatchers, sriov.LinkEvent{Index: d.netdev.ifindex, Netdev: d.netdev.name}, sriov.LinkEvent{Lost: true})
}

// send keeps the last place of every stream for lost, so that it always arrives.
func send[E any](streams []chan E, e, lost E) {
	for _, w := range streams {
		switch free := cap(w) - len(w); {
		case free > 1:
			w <- e
		case free == 1:
			w <- lost
		}
	}
}
