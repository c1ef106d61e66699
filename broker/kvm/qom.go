package kvm

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"vfbroker/broker"
)

// Where QEMU keeps the devices that were given an id, and the others.
const (
	peripheral     = "/machine/peripheral"
	peripheralAnon = "/machine/peripheral-anon"
)

func devicePath(slot broker.Slot) string { return peripheral + "/" + string(slot) }

// property is an entry of a QOM object (ObjectPropertyInfo in qapi/qom.json):
// children have type child<…>, references link<…>.
type property struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

func (s *session) list(ctx context.Context, at string) ([]property, error) {
	var list []property
	err := s.mon.call(ctx, "qom-list", map[string]any{"path": at}, &list)
	return list, err
}

func (s *session) get(ctx context.Context, at, name string, value any) error {
	return s.mon.call(ctx, "qom-get", map[string]any{"path": at, "property": name}, value)
}

// port is a hot-plug port of a guest, which holds one device.
type port struct {
	bus string // name, for device_add
	at  string // QOM path of the bus
}

// freePorts lists the ports that take hot-plug and hold nothing, by name. Only
// ports with an id count: the bus of one without is called pcie.0 like the root bus.
func (s *session) freePorts(ctx context.Context) ([]port, error) {
	devices, err := s.list(ctx, peripheral)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(devices, func(a, b property) int { return strings.Compare(a.Name, b.Name) })
	var free []port
	for _, d := range devices {
		if !isPort(d.Type) {
			continue
		}
		p, ok, err := s.port(ctx, path.Join(peripheral, d.Name))
		if err != nil {
			return nil, err
		}
		if ok {
			free = append(free, p)
		}
	}
	return free, nil
}

// isPort says whether a device type is a port below which one device can be plugged.
func isPort(deviceType string) bool {
	switch deviceType {
	case "child<pcie-root-port>", "child<ioh3420>", "child<xio3130-downstream>":
		return true
	}
	return false
}

// port looks at one port device; false: it takes no hot-plug, or is not free.
func (s *session) port(ctx context.Context, at string) (port, bool, error) {
	var hotplug bool
	switch err := s.get(ctx, at, "hotplug", &hotplug); {
	case isRefusal(err): // QEMU before 5.0 has no such property: always on
	case err != nil:
		return port{}, false, err
	case !hotplug:
		return port{}, false, nil
	}
	properties, err := s.list(ctx, at)
	if isRefusal(err) {
		return port{}, false, nil // went away meanwhile
	}
	if err != nil {
		return port{}, false, err
	}
	i := slices.IndexFunc(properties, func(p property) bool { return p.Type == "child<PCIE>" })
	if i < 0 {
		return port{}, false, nil
	}
	p := port{bus: properties[i].Name, at: path.Join(at, properties[i].Name)}
	free, err := s.portFree(ctx, p)
	return p, free, err
}

// portFree says whether nothing is plugged into a port: its bus has no child[N].
func (s *session) portFree(ctx context.Context, p port) (bool, error) {
	properties, err := s.list(ctx, p.at)
	if isRefusal(err) {
		return false, nil
	}
	taken := slices.ContainsFunc(properties, func(p property) bool { return strings.HasPrefix(p.Name, "child[") })
	return err == nil && !taken, err
}

func isRefusal(err error) bool {
	var refusal *qmpError
	return errors.As(err, &refusal)
}
