package kvm_test

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"vfbroker/broker"
	"vfbroker/broker/kvm"
	"vfbroker/sriov/sysfs"
	"vfbroker/test/hvsuite/qmpfake"
)

// What may come between a request and its reply changes nothing.
func TestNoise(t *testing.T) {
	for name, fault := range map[string]qmpfake.Fault{
		"foreign replies": qmpfake.Foreign, "a reply twice": qmpfake.Twice, "events": qmpfake.Chatty,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, s := scripted(t, qmpfake.Config{})
			s.Guest.Script(func(qmpfake.Command) qmpfake.Fault { return fault })
			g, slot := attach(ctx, t, s, s.VFs[0], "a")
			got, err := s.KVM.Attached(ctx, g)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0] != (broker.Attachment{Slot: slot, Addr: s.VFs[0].Addr}) {
				t.Errorf("attached %v", got)
			}
		})
	}
}

// What is no QMP ends the connection with an error that says so; the next call connects anew.
func TestBrokenStream(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault qmpfake.Fault
		text  string
	}{
		{"oversized", qmpfake.Oversized, "longer than 1048576 bytes"},
		{"malformed", qmpfake.Malformed, "malformed QMP message"},
		{"cut", qmpfake.Cut, "connection ended"},
		{"closed", qmpfake.Vanish, "connection ended"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, s := scripted(t, qmpfake.Config{})
			s.Guest.Script(on("query-status", tt.fault))
			if tt.text == "connection ended" {
				// Only the process could tell whether the guest is gone, and it lives.
				_, err := s.KVM.Lookup(soon(t, ctx), s.ID)
				wantError(t, err, broker.ErrGuestNotReady, tt.text, s.Guest.Path())
			} else {
				_, err := s.KVM.Lookup(ctx, s.ID)
				wantError(t, err, broker.ErrGuestNotReady, tt.text, s.Guest.Path())
			}
			s.Guest.Script(nil)
			if _, err := s.KVM.Lookup(ctx, s.ID); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

// A reply that comes after its caller has given up goes to nobody.
func TestLateReply(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g, _ := attach(ctx, t, s, s.VFs[0], "a") // keeps the monitor connected
	s.Guest.Freeze()
	_, err := s.KVM.Lookup(soon(t, ctx), s.ID)
	wantError(t, err, broker.ErrGuestNotReady, s.Guest.Path(), "query-status", "hangs")
	s.Guest.SetStatus("running")
	s.Guest.Thaw()
	for range 3 {
		if now, err := s.KVM.Lookup(ctx, s.ID); err != nil || now != g {
			t.Fatalf("guest %+v, error %v, want %+v", now, err, g)
		}
	}
	if n := count(s.Guest, "qmp_capabilities"); n != 2 { // Ready's, and the one that is kept
		t.Errorf("connected %d times, want 2", n)
	}
}

func TestMonitorHeld(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	other, err := net.Dial("unix", s.Guest.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := s.Guest.Await(ctx, s.Guest.Connected); err != nil {
		t.Fatal(err)
	}
	_, err = s.KVM.Lookup(soon(t, ctx), s.ID)
	wantError(t, err, broker.ErrGuestNotReady, s.Guest.Path(), "no greeting", "another client holds it", "its own -qmp socket")

	// With the backlog full connect(2) itself says so.
	var waiting []net.Conn
	for {
		c, err := net.Dial("unix", s.Guest.Path())
		if err != nil {
			break
		}
		waiting = append(waiting, c)
	}
	_, err = s.KVM.Lookup(ctx, s.ID)
	wantError(t, err, broker.ErrGuestNotReady, s.Guest.Path(), "another client holds it")
	for _, c := range waiting {
		c.Close()
	}
	other.Close()
	err = s.Guest.Await(ctx, func() bool { // until QEMU is through with those that waited
		_, err := s.KVM.Lookup(soon(t, ctx), s.ID)
		return err == nil
	})
	if err != nil {
		t.Errorf("after the other client has left: %v", err)
	}
}

// The monitor is connected while the guest holds a slot of ours, and free otherwise.
func TestMonitorLeftFree(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	free := func() bool { return !s.Guest.Connected() }
	if _, err := s.KVM.Lookup(ctx, s.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Guest.Await(ctx, free); err != nil {
		t.Fatalf("after a look: %v", err)
	}
	g, slot := attach(ctx, t, s, s.VFs[0], "a")
	if free() {
		t.Error("the monitor was left while the guest holds a slot")
	}
	s.Guest.SetAnswer(qmpfake.LetGo)
	if err := s.KVM.Detach(ctx, g, slot); err != nil {
		t.Fatal(err)
	}
	if err := s.Guest.Await(ctx, free); err != nil {
		t.Errorf("after the last slot: %v", err)
	}
}

// A broker that starts anew finds its slots, stays connected and gets their events.
func TestAdopt(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g, slot := attach(ctx, t, s, s.VFs[0], "a")
	next := restarted(ctx, t, s)
	events := next.Events(ctx)
	got, err := next.Attached(ctx, g)
	if err != nil || len(got) != 1 || got[0].Slot != slot {
		t.Fatalf("attached %v, error %v, want slot %s", got, err, slot)
	}
	if err := s.Guest.Eject(string(slot)); err != nil { // by the guest itself
		t.Fatal(err)
	}
	if ev := <-events; ev != (broker.Event{Kind: broker.EventDetached, Guest: s.ID, Slot: slot}) {
		t.Errorf("event %v", ev)
	}
}

func TestNotRunning(t *testing.T) {
	ctx, s := scripted(t, qmpfake.Config{})
	g, _ := attach(ctx, t, s, s.VFs[0], "a")
	absent := filepath.Join(t.TempDir(), "absent")
	host, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	moved := kvm.New(host, func(id broker.GuestID) (broker.GuestConfig, error) {
		switch id {
		case "unset":
			return broker.GuestConfig{ID: id}, nil
		case "unknown":
			return broker.GuestConfig{}, errors.New("no file unknown.yaml")
		}
		return broker.GuestConfig{ID: id, QMP: absent}, nil
	}, nil)
	_, err = moved.Lookup(ctx, "g1")
	wantError(t, err, broker.ErrNotFound, "g1", absent, "-qmp unix:")
	_, err = moved.Lookup(ctx, "unknown")
	wantError(t, err, broker.ErrNotFound, "unknown")
	_, err = moved.Lookup(ctx, "unset")
	wantError(t, err, broker.ErrInvalid, "unset", "no qmp socket")
	_, err = moved.Dial(ctx, g)
	wantError(t, err, broker.ErrUnsupported, "g1", "cid")

	// Its socket's name is gone and its process is not: nothing may be taken from it.
	_, err = moved.Attached(ctx, g)
	wantError(t, err, broker.ErrGuestNotReady, "has not ended")
	s.Guest.Kill()
	_, err = moved.Attached(ctx, g)
	wantError(t, err, broker.ErrNotFound, "g1")
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has more than one line", err)
	}
}

func TestOtherSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "echo")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	greetings := []string{"SSH-2.0-x\r\n", "{\"return\": {}}\r\n", "[]", ""}
	go func() {
		for _, text := range greetings {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(text))
			c.Close()
		}
	}()
	host, err := sysfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	h := kvm.New(host, func(id broker.GuestID) (broker.GuestConfig, error) { return broker.GuestConfig{ID: id, QMP: path}, nil }, nil)
	for _, text := range greetings {
		_, err := h.Lookup(t.Context(), "g1")
		if !errors.Is(err, broker.ErrGuestNotReady) {
			t.Errorf("greeted with %q: error %v, want %v", text, err, broker.ErrGuestNotReady)
		}
	}
}
