package sriov

import (
	"bufio"
	_ "embed" // the list of names
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/jaypipes/ghw"
	"github.com/jaypipes/pcidb"
)

//go:embed pci.ids
var idList string

// nameDB answers from the list that is built in, so that names do not depend
// on what the host has installed.
var nameDB = sync.OnceValues(func() (*ghw.PCIInfo, error) {
	// ghw looks names up in an Info that it also fills by scanning the host: one bad
	// device there empties it. Below a root without devices there is nothing to scan.
	return ghw.PCI(ghw.WithChroot("/dev/null"), ghw.WithPCIDB(parseIDs(idList)),
		ghw.WithDisableTopology(), ghw.WithDisableTools(), ghw.WithLogger(slog.New(slog.DiscardHandler)))
})

// Names returns the vendor's and the device's name of a PF; an id that is not
// in the list comes back as its hex digits.
func Names(pf PF) (vendor, device string) {
	vendor, device = fmt.Sprintf("%04x", pf.Vendor), fmt.Sprintf("%04x", pf.Device)
	db, err := nameDB()
	if err != nil {
		return vendor, device
	}
	d := db.ParseDevice(pf.Addr.String(), modalias(pf))
	if d == nil {
		return vendor, device
	}
	const unknown = "unknown" // what ghw says of an id that it has no name for
	if d.Vendor != nil && d.Vendor.Name != unknown {
		vendor = d.Vendor.Name
	}
	if d.Product != nil && d.Product.Name != unknown {
		device = d.Product.Name
	}
	return vendor, device
}

// modalias is the form by which ghw knows a device, without a subsystem
// (Documentation/ABI/testing/sysfs-bus-pci does not define it; drivers/pci/pci-sysfs.c does).
func modalias(pf PF) string {
	return fmt.Sprintf("pci:v%08Xd%08Xsv%08Xsd%08Xbc%02Xsc%02Xi%02X", pf.Vendor, pf.Device, 0, 0, pf.Class>>16&0xff, pf.Class>>8&0xff, pf.Class&0xff)
}

// parseIDs reads vendors and devices in the form of the list of PCI ids.
func parseIDs(text string) *pcidb.PCIDB {
	db := &pcidb.PCIDB{
		Classes:  map[string]*pcidb.Class{},
		Vendors:  map[string]*pcidb.Vendor{},
		Products: map[string]*pcidb.Product{},
	}
	var vendor *pcidb.Vendor
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := lines.Text()
		id, name, ok := strings.Cut(strings.TrimPrefix(line, "\t"), "  ")
		switch {
		case !ok || len(id) != 4 || line[0] == '#':
			continue
		case line[0] != '\t':
			vendor = &pcidb.Vendor{ID: id, Name: name}
			db.Vendors[id] = vendor
		case vendor != nil:
			product := &pcidb.Product{VendorID: vendor.ID, ID: id, Name: name}
			vendor.Products = append(vendor.Products, product)
			db.Products[vendor.ID+id] = product
		}
	}
	return db
}
