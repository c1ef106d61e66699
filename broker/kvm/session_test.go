package kvm_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vfbroker/broker"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hvsuite/qmpfake"
)

// pidfds is how many descriptors of another process this one has. That of a
// process that has ended names none (fs/pidfs.c).
func pidfds(t *testing.T, pid int) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // closed meanwhile
		}
		if slices.Contains(strings.Split(string(text), "\n"), "Pid:\t"+strconv.Itoa(pid)) {
			n++
		}
	}
	return n
}

// settles waits until no more than most descriptors of a process are open.
func settles(ctx context.Context, t *testing.T, pid, most int) {
	t.Helper()
	if err := sysfs.Wait(ctx, func() (bool, error) { return pidfds(t, pid) <= most, nil }); err != nil {
		t.Fatalf("%d descriptors of process %d, want at most %d", pidfds(t, pid), pid, most)
	}
}

// Who greets and hangs up each time costs one wait for the end of its process,
// however often it is asked; and its end is told once.
func TestHangsUpEachTime(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	events := s.KVM.Events(ctx)
	pid := s.Guest.PID()
	before := pidfds(t, pid) // the test's own
	s.Guest.Script(on("qmp_capabilities", qmpfake.Vanish))
	for range 50 {
		_, err := s.KVM.Lookup(ctx, s.ID)
		wantError(t, err, broker.ErrGuestNotReady, "closed at once")
	}
	settles(ctx, t, pid, before+1)
	s.Guest.Kill()
	if ev := <-events; ev != (broker.Event{Kind: broker.EventGuestGone, Guest: s.ID}) {
		t.Errorf("event %v", ev)
	}
	s.Guest.Script(nil)
	if err := s.Guest.Restart(); err != nil {
		t.Fatal(err)
	}
	attach(ctx, t, s, s.VFs[0], "a")
	s.Guest.Reset()
	if ev := <-events; ev != (broker.Event{Kind: broker.EventLost, Guest: s.ID}) {
		t.Errorf("event %v, want that of the reset: the end is told once", ev)
	}
}

// A wait that gives way to that for another process is told as lost events, since
// nobody will tell of the first one's end.
func TestHangsUpFromTwoProcesses(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	events := s.KVM.Events(ctx)
	first := s.Guest
	second, err := qmpfake.Start(qmpfake.Config{Ports: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Stop)
	var before []int
	for _, g := range []*qmpfake.Guest{first, second} {
		g.Script(on("qmp_capabilities", qmpfake.Vanish))
		before = append(before, pidfds(t, g.PID()))
		s.Guest = g
		_, err := s.KVM.Lookup(ctx, s.ID)
		wantError(t, err, broker.ErrGuestNotReady, "closed at once")
	}
	if ev := <-events; ev != (broker.Event{Kind: broker.EventLost, Guest: s.ID}) {
		t.Errorf("event %v", ev)
	}
	all := func() int { return pidfds(t, first.PID()) + pidfds(t, second.PID()) }
	if err := sysfs.Wait(ctx, func() (bool, error) { return all() <= before[0]+before[1]+1, nil }); err != nil {
		t.Errorf("%d descriptors of two processes, want at most %d", all(), before[0]+before[1]+1)
	}
	first.Stop()
}
