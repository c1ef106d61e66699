// Package qmpfake is a scripted QEMU: a guest that is a real process with a real
// QMP socket, whose devices follow QEMU's rules and whose manners a test decides.
// Nothing in it waits for time: the guest lets go of a device when it is told to.
//
// The process that listens is a child of the test, so that who owns the socket,
// its user, its limits and its end are the kernel's truth. What is said on the
// socket is scripted in the test's own process. A test package that uses it calls Main first in its TestMain.
package qmpfake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"vfbroker/sriov/pci"
)

// Config is a guest as it starts.
type Config struct {
	Path      string // of the socket; "" makes one in a temporary directory of its own
	Ports     int    // free hot-plug root ports hp0, hp1, …
	Memory    uint64 // bytes; 0: 1 MiB
	UID       int    // user and group of the process, as root only; 0: the test's own
	LockLimit uint64 // RLIMIT_MEMLOCK in bytes; 0: the test's own

	// Open and Close stand for the host side of a device: QEMU opens a function
	// when it is plugged, and a refusal fails device_add with its text. Nil: always works.
	Open  func(pci.Addr) error
	Close func(pci.Addr)

	// VFIO: the guest's process opens functions itself, by VFIO on the real kernel, so
	// that who holds them, and that they are let go of when it ends, is the kernel's truth.
	VFIO bool
}

// Answer is how the guest answers an unplug.
type Answer int

// The answers. A guest that waits lets go by LetGo, or refuses by Refuse.
const (
	Wait Answer = iota
	LetGo
	Refuse
	Linger // lets go at once, and QEMU tells when Finish is called
)

// Port is a port that devices are plugged into.
type Port struct {
	ID      string
	Type    string // QEMU's, e.g. pcie-root-port
	Hotplug bool
}

// Device is a device that was plugged.
type Device struct {
	ID     string
	Driver string
	Bus    string
	Host   pci.Addr // vfio-pci
	Asked  bool     // the guest was asked to let go
}

// Guest is a scripted QEMU. Its methods are safe for concurrent use.
type Guest struct {
	cfg Config
	dir string // to be removed at the end

	mu      sync.Mutex
	child   *child // nil: not running
	conn    *client
	status  string
	answer  Answer
	busy    bool
	ports   []Port
	devices map[string]*Device
	leaving []*Device // QEMU has forgotten them and not yet closed them
	log     []Command
	script  func(Command) Fault
	frozen  chan struct{} // nil: not frozen; closed by Thaw
	changed chan struct{} // closed at every change of what Await looks at
}

// Command is a command as it came.
type Command struct {
	Name string
	Args map[string]any
	N    int // how many came before it
}

// Start starts a guest. Stop ends it.
func Start(cfg Config) (*Guest, error) {
	g := &Guest{cfg: cfg, changed: make(chan struct{})}
	if g.cfg.Memory == 0 {
		g.cfg.Memory = 1 << 20
	}
	if g.cfg.Path == "" {
		dir, err := os.MkdirTemp("", "qmp")
		if err != nil {
			return nil, err
		}
		g.dir, g.cfg.Path = dir, filepath.Join(dir, "qmp")
	}
	if err := g.Restart(); err != nil {
		g.Stop()
		return nil, fmt.Errorf("start scripted guest: %w", err)
	}
	return g, nil
}

// Restart starts the guest again after Kill: another process, no devices.
func (g *Guest) Restart() error {
	if err := os.Remove(g.cfg.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	c, err := startChild(g.cfg)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.child, g.status, g.devices, g.frozen = c, "running", map[string]*Device{}, nil
	g.ports = nil
	for i := range g.cfg.Ports {
		g.ports = append(g.ports, Port{ID: fmt.Sprintf("hp%d", i), Type: "pcie-root-port", Hotplug: true})
	}
	g.change()
	go g.accept(c.listener)
	return nil
}

// Kill ends the guest's process as SIGKILL does: its socket stays in the file system.
func (g *Guest) Kill() {
	g.mu.Lock()
	c, conn, devices, leaving := g.child, g.conn, g.devices, g.leaving
	g.child, g.devices, g.leaving = nil, map[string]*Device{}, nil
	g.thaw()
	g.change()
	g.mu.Unlock()
	if c == nil {
		return
	}
	c.listener.Close()
	if conn != nil {
		conn.Close()
	}
	for _, d := range devices {
		g.close(d)
	}
	for _, d := range leaving {
		g.close(d)
	}
	c.end()
}

// Stop ends the guest for good.
func (g *Guest) Stop() {
	g.Kill()
	if g.dir != "" {
		os.RemoveAll(g.dir)
	}
}

// Path is the path of the guest's socket.
func (g *Guest) Path() string { return g.cfg.Path }

// PID is the guest's process, 0 when it does not run.
func (g *Guest) PID() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.child == nil {
		return 0
	}
	return g.child.cmd.Process.Pid
}

// SetStatus sets what query-status says: running, paused, shutdown, ….
func (g *Guest) SetStatus(status string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status = status
}

// SetAnswer decides how further unplugs are answered.
func (g *Guest) SetAnswer(a Answer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = a
}

// SetBusy makes QEMU refuse to plug and unplug because the guest's power
// indicators blink.
func (g *Guest) SetBusy(busy bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy = busy
}

// AddPort adds a port, e.g. one without hot-plug.
func (g *Guest) AddPort(p Port) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ports = append(g.ports, p)
}

// Occupy plugs something else into a port, as another client would.
func (g *Guest) Occupy(bus string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.devices["other-"+bus] = &Device{ID: "other-" + bus, Driver: "virtio-net-pci", Bus: bus}
}

// Script decides the fault of every further command; nil: none.
func (g *Guest) Script(fault func(Command) Fault) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.script = fault
}

// Drop closes the client's connection, while the guest goes on.
func (g *Guest) Drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn != nil {
		g.conn.Close()
	}
}

// Freeze stops QEMU's main loop: it accepts nobody and answers nothing.
func (g *Guest) Freeze() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.frozen == nil {
		g.frozen = make(chan struct{})
	}
}

// Thaw lets QEMU go on where it stopped.
func (g *Guest) Thaw() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.thaw()
}

func (g *Guest) thaw() {
	if g.frozen != nil {
		close(g.frozen)
		g.frozen = nil
	}
}

// LetGo makes the guest let go of a device that it was asked for.
func (g *Guest) LetGo(id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.devices[id]
	if d == nil || !d.Asked {
		return fmt.Errorf("guest was not asked for device %q", id)
	}
	g.delete(d)
	return nil
}

// Refuse makes the guest refuse to let go of a device that it was asked for.
func (g *Guest) Refuse(id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.devices[id]
	if d == nil || !d.Asked {
		return fmt.Errorf("guest was not asked for device %q", id)
	}
	g.refuse(d)
	return nil
}

// Finish lets QEMU close the devices that it has forgotten, and tell so.
func (g *Guest) Finish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.leaving {
		g.delete(d)
	}
	g.leaving = nil
}

// Eject makes the guest let go of a device on its own wish.
func (g *Guest) Eject(id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.devices[id]
	if d == nil {
		return fmt.Errorf("guest has no device %q", id)
	}
	g.delete(d)
	return nil
}

// Reset reboots the guest, which forgets what it was asked.
func (g *Guest) Reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.devices {
		d.Asked = false
	}
	g.emit("RESET", map[string]any{"guest": true, "reason": "guest-reset"})
}

// Emit sends an event to the client, if there is one.
func (g *Guest) Emit(event string, data map[string]any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.emit(event, data)
}

// Devices are the devices that were plugged, by id.
func (g *Guest) Devices() []Device {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []Device
	for _, id := range slices.Sorted(maps.Keys(g.devices)) {
		list = append(list, *g.devices[id])
	}
	return list
}

// Commands are the commands that came, in order.
func (g *Guest) Commands() []Command {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.log)
}

// Connected says whether a client has the monitor.
func (g *Guest) Connected() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.conn != nil
}

// Await waits until cond holds, which may call the guest's methods. It is
// looked at after every command, and when a client or the guest comes or goes.
func (g *Guest) Await(ctx context.Context, cond func() bool) error {
	for {
		g.mu.Lock()
		changed := g.changed
		g.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("await scripted guest: %w", context.Cause(ctx))
		}
	}
}

// change wakes those that Await. g.mu is held.
func (g *Guest) change() {
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *Guest) open(addr pci.Addr) error {
	if g.cfg.Open != nil {
		return g.cfg.Open(addr)
	}
	if g.cfg.VFIO && g.child != nil {
		return g.child.order(orderOpen, addr)
	}
	return nil
}

// close closes a function. One that was killed has closed all.
func (g *Guest) close(d *Device) {
	if d.Driver != "vfio-pci" {
		return
	}
	if g.cfg.Close != nil {
		g.cfg.Close(d.Host)
	}
	if g.cfg.VFIO && g.child != nil {
		if err := g.child.order(orderClose, d.Host); err != nil {
			panic(fmt.Sprintf("close %s: %v", d.Host, err)) // the script and its process have come apart
		}
	}
}
