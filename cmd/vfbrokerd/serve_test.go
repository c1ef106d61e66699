package main

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// What is closed comes in order, and each only after the one before has ended.
func TestCloseInOrder(t *testing.T) {
	t.Parallel()
	var order []string
	step := func(name string) closer {
		return closer{name, func() error { order = append(order, name); return nil }}
	}
	closeWithin(time.Minute, slog.New(slog.DiscardHandler), step("broker"), step("journal"))
	if want := []string{"broker", "journal"}; !slices.Equal(order, want) {
		t.Errorf("closed %v, want %v", order, want)
	}
}

// Work that is blocked in the kernel does not keep the daemon from ending; its
// name is logged, and the journal that it writes to is left open.
func TestCloseBlocked(t *testing.T) {
	t.Parallel()
	blocked, closed := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(blocked) })
	var text strings.Builder
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		closeWithin(time.Millisecond, slog.New(slog.NewTextHandler(&text, nil)),
			closer{"broker", func() error { <-blocked; return nil }},
			closer{"journal", func() error { close(closed); return nil }})
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it waits for work that does not end")
	}
	if !strings.Contains(text.String(), "for=broker") {
		t.Errorf("log %q does not say what it waited for", text.String())
	}
	select {
	case <-closed:
		t.Error("the journal was closed under the work")
	default:
	}
}
