package sysfs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/sriov/sysfs"
)

func TestNumbers(t *testing.T) {
	t.Parallel()
	tree, _ := plant(t, map[string]string{
		"/int": "128\n", "/negative": "-1\n", "/bare": "7", "/hex": "0x15b3\n", "/bareHex": "10ca\n",
		"/empty": "", "/newline": "\n", "/word": "seven\n", "/two": "1 2\n", "/plus": "+1\n", "/huge": "99999999999999999999\n",
		"/text": "flr bus\n",
	})
	for name, want := range map[string]int{"/int": 128, "/negative": -1, "/bare": 7} {
		if got, err := sysfs.ReadInt(tree, name); err != nil || got != want {
			t.Errorf("int %s: %d, %v, want %d", name, got, err, want)
		}
	}
	for name, want := range map[string]uint64{"/hex": 0x15b3, "/bareHex": 0x10ca} {
		if got, err := sysfs.ReadHex(tree, name); err != nil || got != want {
			t.Errorf("hex %s: %#x, %v, want %#x", name, got, err, want)
		}
	}
	for _, name := range []string{"/empty", "/newline", "/word", "/two", "/plus", "/huge", "/none"} {
		if got, err := sysfs.ReadInt(tree, name); err == nil || got != 0 || !strings.Contains(err.Error(), name) {
			t.Errorf("int %s: %d, %v, want an error that names it", name, got, err)
		}
	}
	for _, name := range []string{"/empty", "/newline", "/word", "/two", "/negative"} {
		if got, err := sysfs.ReadHex(tree, name); err == nil {
			t.Errorf("hex %s: %#x, want an error", name, got)
		}
	}
	if text, err := sysfs.ReadString(tree, "/text"); err != nil || text != "flr bus" {
		t.Errorf("text: %q, %v", text, err)
	}
}

func FuzzNumbers(f *testing.F) {
	for _, s := range []string{"0x15b3\n", "128\n", "-1\n", "10ca\n", "+1", "0x", "\n", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := sysfs.ParseInt(data); err == nil {
			if again, err := sysfs.ParseInt(fmt.Appendf(nil, "%d\n", v)); err != nil || again != v {
				t.Errorf("%q gives %d, which gives %d, %v", data, v, again, err)
			}
		}
		if v, err := sysfs.ParseHex(data); err == nil {
			if again, err := sysfs.ParseHex(fmt.Appendf(nil, "%#x\n", v)); err != nil || again != v {
				t.Errorf("%q gives %#x, which gives %#x, %v", data, v, again, err)
			}
		}
		if v, err := sysfs.ParseIndex(string(data)); err == nil && v < 0 {
			t.Errorf("%q gives index %d", data, v)
		}
	})
}

func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		looks := 0
		err := sysfs.Wait(t.Context(), func() (bool, error) {
			looks++
			return time.Since(start) >= time.Second, nil
		})
		if err != nil || looks > 20 {
			t.Errorf("a second's wait took %d looks, %v", looks, err)
		}
		if late := time.Since(start); late > 1200*time.Millisecond {
			t.Errorf("seen after %v", late)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := sysfs.Wait(ctx, func() (bool, error) { return false, nil })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deadline: %v", err)
		}
	})
	broken := errors.New("broken")
	if err := sysfs.Wait(t.Context(), func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("condition's error: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sysfs.Wait(ended, func() (bool, error) { return true, nil }); err != nil {
		t.Errorf("true at the first look, context ended: %v", err)
	}
}
