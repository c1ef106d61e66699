//go:build lab || labxen

package guestshim_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"vfbroker/guestshim"
)

// labVFMAC is the MAC address of the VF that the tests make. No guest has it from its start.
const labVFMAC = "52:54:00:0d:00:01"

// atEnd does something when the test ends.
func atEnd(t *testing.T, do func() error) {
	t.Helper()
	t.Cleanup(func() {
		t.Helper()
		if err := do(); err != nil {
			t.Error(err)
		}
	})
}

// connect makes a connection that lasts as long as the test.
func connect(t *testing.T, dial func() (net.Conn, error)) net.Conn {
	t.Helper()
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// checkShim checks the shim in a real guest, whatever its host reaches it by. dial makes a new connection.
func checkShim(ctx context.Context, t *testing.T, client *guestshim.Client, dial func() (net.Conn, error)) {
	t.Helper()
	about, err := client.About(ctx)
	if err != nil || about.Protocol != guestshim.Version || about.Kernel == "" || about.BootID == "" || !about.Bench {
		t.Errorf("about: %+v, %v", about, err)
	}
	impatient := connect(t, dial) // with a deadline for the shim and none for itself: the guest may be slow
	fmt.Fprintf(impatient, `{"v":1,"id":1,"op":"await","timeout_ms":2000,"body":{"mac":"%s"}}`+"\n", labVFMAC)
	again, err := client.About(ctx) // while the other connection waits
	if err != nil || again != about {
		t.Errorf("about while another connection waits: %+v, %v, want %+v", again, err, about)
	}
	if line, err := bufio.NewReader(impatient).ReadString('\n'); err != nil || !strings.Contains(line, string(guestshim.NotReady)) || !strings.Contains(line, labVFMAC) {
		t.Errorf("a device that does not come: got %q, %v, want %v that names it", line, err, guestshim.NotReady)
	}

	broken := connect(t, dial)
	go fmt.Fprint(broken, strings.Repeat("x", guestshim.MaxFrame+1))
	lines := bufio.NewScanner(broken)
	if !lines.Scan() || !strings.Contains(lines.Text(), string(guestshim.BadRequest)) {
		t.Errorf("an oversized frame: got %q, %v", lines.Text(), lines.Err())
	}
	if lines.Scan() {
		t.Errorf("the connection goes on after an oversized frame: %q", lines.Text())
	}
	if _, err := client.About(ctx); err != nil {
		t.Errorf("another connection after that: %v", err)
	}
}

// countSwitches is how often the threads have been switched to and from whose /proc/…/status files are given.
func countSwitches(t *testing.T, files string) int {
	t.Helper()
	sum, found := 0, false
	for line := range strings.Lines(files) {
		name, value, _ := strings.Cut(line, ":")
		if !strings.HasSuffix(name, "voluntary_ctxt_switches") {
			continue
		}
		var n int
		if _, err := fmt.Sscan(value, &n); err != nil {
			t.Fatal(err)
		}
		sum, found = sum+n, true
	}
	if !found {
		t.Fatalf("no context switches in %.200q", files)
	}
	return sum
}
