package qmpfake

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"vfbroker/sriov/pci"
)

func result(value any) object { return object{"return": value} }

func refusal(class, format string, args ...any) object {
	return object{"error": object{"class": class, "desc": fmt.Sprintf(format, args...)}}
}

func generic(format string, args ...any) object { return refusal("GenericError", format, args...) }

func notFound(name string) object {
	return refusal("DeviceNotFound", "Device '%s' not found", name)
}

// run does what QEMU does with a command.
func (g *Guest) run(c *client, cmd Command) object {
	g.mu.Lock()
	defer g.mu.Unlock()
	text := func(key string) string { s, _ := cmd.Args[key].(string); return s }
	if cmd.Name == "qmp_capabilities" {
		c.ready = true
		return result(object{})
	}
	if !c.ready {
		return refusal("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
	}
	switch cmd.Name {
	case "query-status":
		return result(object{"status": g.status, "running": g.status == "running"})
	case "query-memory-size-summary":
		return result(object{"base-memory": g.cfg.Memory, "plugged-memory": 0})
	case "stop":
		g.status = "paused"
		g.emit("STOP", nil)
	case "cont":
		g.status = "running"
		g.emit("RESUME", nil)
	case "qom-list":
		return g.list(text("path"))
	case "qom-get":
		return g.get(text("path"), text("property"))
	case "device_add":
		return g.add(cmd.Args)
	case "device_del":
		return g.del(text("id"))
	default:
		return refusal("CommandNotFound", "The command %s has not been found", cmd.Name)
	}
	return result(object{})
}

func childOf(kind string) string { return "child<" + kind + ">" }

// list is qom-list of the paths that QEMU has for devices, ports and buses.
func (g *Guest) list(at string) object {
	entries := []object{{"name": "type", "type": "string"}}
	add := func(name, kind string) { entries = append(entries, object{"name": name, "type": kind}) }
	dir, name := path.Split(at)
	switch {
	case at == "/machine/peripheral":
		for _, p := range g.ports {
			add(p.ID, childOf(p.Type))
		}
		for _, id := range slices.Sorted(maps.Keys(g.devices)) {
			add(id, childOf(g.devices[id].Driver))
		}
	case at == "/machine/peripheral-anon":
		add("device[0]", "child<virtio-balloon-pci>")
	case dir == "/machine/peripheral/" && g.port(name) != nil:
		add("hotplug", "bool")
		add("pci_bridge_io[0]", "child<memory-region>")
		add(name, "child<PCIE>")
	case dir == "/machine/peripheral/" && g.devices[name] != nil:
		add("host", "str")
		add("sysfsdev", "str")
	case dir == "/machine/peripheral/"+name+"/" && g.port(name) != nil:
		add("hotplug-handler", "link<hotplug-handler>")
		if d := g.plugged(name); d != nil {
			add("child[0]", "link<"+d.Driver+">")
		}
	default:
		return notFound(at)
	}
	return result(entries)
}

func (g *Guest) get(at, property string) object {
	dir, name := path.Split(at)
	d, p := g.devices[name], g.port(name)
	switch {
	case dir != "/machine/peripheral/" || d == nil && p == nil:
		return notFound(at)
	case p != nil && property == "hotplug":
		return result(p.Hotplug)
	case d != nil && property == "sysfsdev" && d.Driver == "vfio-pci":
		return result("/sys/bus/pci/devices/" + d.Host.String())
	case d != nil && property == "host" && d.Driver == "vfio-pci":
		return result(d.Host.String())
	default:
		return generic("Property '%s.%s' not found", name, property)
	}
}

func (g *Guest) port(id string) *Port {
	for i := range g.ports {
		if g.ports[i].ID == id {
			return &g.ports[i]
		}
	}
	return nil
}

func (g *Guest) plugged(bus string) *Device {
	for _, d := range g.devices {
		if d.Bus == bus {
			return d
		}
	}
	return nil
}

// add is device_add, with the checks and the texts of QEMU's
// system/qdev-monitor.c, hw/pci/pci.c and hw/vfio/pci.c.
func (g *Guest) add(args map[string]any) object {
	text := func(key string) string { s, _ := args[key].(string); return s }
	d := &Device{ID: text("id"), Driver: text("driver"), Bus: text("bus")}
	p := g.port(d.Bus)
	switch {
	case d.Driver != "vfio-pci":
		return generic("'%s' is not a valid device model name", d.Driver)
	case args["rombar"] != 0.0:
		return generic("scripted guest: want rombar 0")
	case p == nil:
		return generic("Bus '%s' not found", d.Bus)
	case !p.Hotplug:
		return generic("Bus '%s' does not support hotplugging", d.Bus)
	case g.devices[d.ID] != nil || g.port(d.ID) != nil:
		return generic("Duplicate device ID '%s'", d.ID)
	case g.plugged(d.Bus) != nil:
		return generic("PCI: slot 0 function 0 already occupied by %s, new func %s cannot be exposed to guest.", g.plugged(d.Bus).Driver, d.Driver)
	case g.busy:
		return generic("Hot-plug failed: guest is busy (power indicator blinking)")
	}
	host := text("host")
	addr, err := pci.ParseAddr(host)
	if err == nil && addr.Domain > 0xffff {
		return generic("Property 'vfio-pci.host' doesn't take value '%s'", host)
	}
	if host == "" {
		addr, err = pci.ParseAddr(strings.TrimPrefix(text("sysfsdev"), "/sys/bus/pci/devices/"))
	}
	if err != nil {
		return generic("%v", err)
	}
	d.Host = addr
	if err := g.open(addr); err != nil {
		return generic("vfio %s: %v", addr, err)
	}
	g.devices[d.ID] = d
	return result(object{})
}

// del is device_del: it only asks the guest.
func (g *Guest) del(id string) object {
	d := g.devices[id]
	switch {
	case d == nil:
		return notFound(id)
	case g.busy:
		return generic("Hot-unplug failed: guest is busy (power indicator blinking)")
	case d.Asked:
		return generic("Device %s is already in the process of unplug", id)
	}
	d.Asked = true
	switch g.answer {
	case LetGo:
		g.delete(d)
	case Refuse:
		g.refuse(d)
	case Linger:
		delete(g.devices, id)
		g.leaving = append(g.leaving, d)
	}
	return result(object{})
}

// delete ends a device: QEMU closes the function and then tells. Devices
// inside of devices have events of their own, without an id.
func (g *Guest) delete(d *Device) {
	delete(g.devices, d.ID)
	g.close(d)
	at := "/machine/peripheral/" + d.ID
	g.emit("DEVICE_DELETED", object{"path": at + "/inner"})
	g.emit("DEVICE_DELETED", object{"device": d.ID, "path": at})
}

func (g *Guest) refuse(d *Device) {
	d.Asked = false
	g.emit("DEVICE_UNPLUG_GUEST_ERROR", object{"device": d.ID, "path": "/machine/peripheral/" + d.ID})
}
