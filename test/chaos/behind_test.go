//go:build lab

package chaos

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "vfbroker/broker/brokerpb"
)

// behind sets a MAC behind the daemon's back, of a free VF and of a lent one.
func (c *chaos) behind(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := c.scripted(t)
	guest := s.names()[0]
	const free, lent = 2, 3
	const foreign = "02:ba:d0:00:00:01"
	c.setMAC(ctx, t, free, foreign)
	c.giveBack(ctx, t, c.lend(ctx, t, guest, free, pb.ShimWish_SHIM_WISH_SKIP)) // handed out as asked, or it is counted as dirty
	c.idle(ctx, t)
	c.result.Behind.FreeLentClean = !t.Failed()

	lease := c.lend(ctx, t, guest, lent, pb.ShimWish_SHIM_WISH_SKIP)
	began := time.Now()
	c.setMAC(ctx, t, lent, foreign)
	await(ctx, t, "the API reports the drift of the lent VF", settling, func(ctx context.Context) (bool, error) {
		vf, err := c.vf(ctx, lent)
		return err == nil && slices.ContainsFunc(vf.Drift, func(d *pb.Drift) bool {
			return d.Kind == "attributes" && strings.Contains(d.Want, lease.Mac) && strings.Contains(d.Found, foreign)
		}), err
	})
	c.result.Behind.DriftReported = true
	c.result.Behind.DriftSeconds = time.Since(began).Seconds()
	c.giveBack(ctx, t, lease)
	c.idle(ctx, t)
	await(ctx, t, "the drift is over", settling, func(ctx context.Context) (bool, error) {
		vf, err := c.vf(ctx, lent)
		return err == nil && len(vf.Drift) == 0, err
	})
}

func (c *chaos) setMAC(ctx context.Context, t *testing.T, vf int, mac string) {
	t.Helper()
	if out, err := exec.CommandContext(ctx, "ip", "link", "set", c.host.pf.Netdev, "vf", fmt.Sprint(vf), "mac", mac).CombinedOutput(); err != nil {
		t.Fatalf("set the MAC of VF %d: %v: %s", vf, err, out)
	}
	now, err := c.host.attributes(ctx, vf)
	if err != nil || now.MAC.String() != mac {
		t.Fatalf("MAC of VF %d: %v, %v, want %s", vf, now.MAC, err, mac)
	}
}

const (
	compareEvery = 10 // rebinds

	// From the return of the write that rebinds a function, by whose end the kernel has told of it (driver_bound in drivers/base/dd.c; a probe of
	// igbvf comes before), to the API showing it. By the deterministic clock this is the length of the path from the
	// kernel's event through the daemon, with the look at the host that it is compared with.
	maxLag = 250 * time.Millisecond
)

// rebinds binds and unbinds VFs n times behind the daemon's back.
func (c *chaos) rebinds(t *testing.T, n int) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "modprobe", "igbvf").CombinedOutput(); err != nil {
		t.Fatalf("modprobe igbvf: %v: %s", err, out)
	}
	drivers := []string{"vfio-pci", "igbvf", ""}
	vfs, err := c.host.look(ctx)
	if err != nil {
		t.Fatal(err)
	}
	now := make([]string, len(vfs))
	for i := range n {
		v := c.rand.IntN(len(vfs))
		next := drivers[c.rand.IntN(len(drivers))]
		if next == now[v] {
			next = drivers[(slices.Index(drivers, next)+1)%len(drivers)]
		}
		if err := rebind(vfs[v].Addr, next); err != nil {
			t.Fatalf("rebind %d: %v", i, err)
		}
		now[v] = next
		c.result.Rebinds.Cycles++
		if i%compareEvery == compareEvery-1 {
			c.compareInventory(ctx, t)
		}
	}
	for v := range vfs {
		if err := rebind(vfs[v].Addr, ""); err != nil {
			t.Fatal(err)
		}
	}
	c.compareInventory(ctx, t)
	// igbvf has given the VFs addresses, which a grant and a release take away.
	s := c.scripted(t)
	for i := range vfs {
		c.giveBack(ctx, t, c.lend(ctx, t, s.names()[i%2], i, pb.ShimWish_SHIM_WISH_SKIP))
	}
	c.idle(ctx, t)
}

// rebind gives a function to a driver, "" for none, as an administrator does
// (Documentation/ABI/testing/sysfs-bus-pci, driver_override).
func rebind(addr, driver string) error {
	dir := filepath.Join("/sys/bus/pci/devices", addr)
	write := func(name, value string) error { return os.WriteFile(name, []byte(value+"\n"), 0) }
	if _, err := os.Lstat(filepath.Join(dir, "driver")); err == nil {
		if err := write(filepath.Join(dir, "driver/unbind"), addr); err != nil {
			return err
		}
	}
	if err := write(filepath.Join(dir, "driver_override"), driver); err != nil || driver == "" {
		return err
	}
	if err := write("/sys/bus/pci/drivers_probe", addr); err != nil {
		return err
	}
	if got, err := os.Readlink(filepath.Join(dir, "driver")); err != nil || filepath.Base(got) != driver {
		return fmt.Errorf("bind %s to %s: it is %q, %v", addr, driver, got, err)
	}
	return nil
}

// compareInventory waits until the API shows the VFs and drivers that the kernel shows, right after a change.
func (c *chaos) compareInventory(ctx context.Context, t *testing.T) {
	t.Helper()
	limit, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	began := time.Now()
	for {
		kernel, api, err := c.inventories(limit)
		if err != nil {
			t.Fatalf("compare the inventory with the kernel: %v", err)
		}
		if maps.Equal(kernel, api) {
			lag := time.Since(began)
			c.result.Rebinds.MaxLag = max(c.result.Rebinds.MaxLag, lag.Seconds())
			if c.result.Clock == "deterministic" && lag > maxLag {
				t.Errorf("the API shows a change after %v, want at most %v", lag, maxLag)
			}
			return
		}
		select {
		case <-time.After(time.Millisecond):
			continue
		case <-limit.Done():
		}
		phantom, missing := apart(kernel, api)
		c.result.Rebinds.Phantom += len(phantom)
		c.result.Rebinds.Missing += len(missing)
		t.Fatalf("only the API has %v, only the kernel has %v", phantom, missing)
	}
}

// inventories are what the kernel and the API say: driver by VF and address.
func (c *chaos) inventories(ctx context.Context) (kernel, api map[string]string, err error) {
	vfs, err := c.host.look(ctx)
	if err != nil {
		return nil, nil, err
	}
	reply, err := c.daemon.Inventory(ctx, &pb.InventoryRequest{Pf: c.host.pf.ID})
	if err != nil {
		return nil, nil, err
	}
	kernel, api = map[string]string{}, map[string]string{}
	for _, vf := range vfs {
		kernel[vf.ID+" "+vf.Addr] = vf.Driver
	}
	for _, vf := range reply.Pfs[0].Vfs {
		api[vf.Function+" "+vf.Address] = vf.Driver
	}
	return kernel, api, nil
}
