package xsfake_test

import (
	"slices"
	"testing"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

// Scripted ends of a device answer each other, and have done so before the
// write that began it is answered.
func TestOnWrite(t *testing.T) {
	t.Parallel()
	ctx, s := t.Context(), xsfake.New(t)
	c := xenstore.New(s.Dial)
	t.Cleanup(func() { c.Close() })
	var order []string
	s.OnWrite(func(path, value string) {
		order = append(order, path+"="+value)
		switch {
		case path == "/back/state" && value == "3":
			s.Set("/front/state", "4")
			s.Set("/front/seen", "1")
		case path == "/front/state" && value == "4":
			s.Set("/back/state", "4")
		}
	})
	err := c.Update(ctx, func(tx *xenstore.Tx) error {
		if err := tx.Write("/back/num_devs", "1"); err != nil {
			return err
		}
		if len(order) > 0 {
			t.Errorf("told before the commit: %q", order)
		}
		return tx.Write("/back/state", "3")
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/back/num_devs=1", "/back/state=3", "/front/state=4", "/front/seen=1", "/back/state=4"}
	if !slices.Equal(order, want) {
		t.Errorf("written %q, want %q", order, want)
	}
	if got, err := c.Read(ctx, "/back/state"); err != nil || got != "4" {
		t.Errorf("got %q, %v", got, err)
	}
}
