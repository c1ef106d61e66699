package xenstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

func TestNodes(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		must(t, r.Write(ctx, "/local/domain/3/name", "web"))
		r.wantRead(ctx, "/local/domain/3/name", "web")
		r.wantRead(ctx, "/local/domain", "")
		must(t, r.Write(ctx, "/local/domain/3/odd", "a\x00b\n"))
		r.wantRead(ctx, "/local/domain/3/odd", "a\x00b\n")
		must(t, r.Mkdir(ctx, "/local/domain/3/name"))
		r.wantRead(ctx, "/local/domain/3/name", "web")
		must(t, r.Mkdir(ctx, "/local/domain/10/device/pci"))
		if got, err := r.List(ctx, "/local/domain"); err != nil || !slices.Equal(got, []string{"10", "3"}) {
			t.Errorf("list: %q, %v", got, err)
		}
		if got, err := r.List(ctx, "/local/domain/10/device/pci"); err != nil || len(got) != 0 {
			t.Errorf("list of a leaf: %q, %v", got, err)
		}
		must(t, r.Remove(ctx, "/local/domain/3"))
		must(t, r.Remove(ctx, "/local/domain/3"))
		must(t, r.Remove(ctx, "/no/such/parent"))
		if _, there := r.store.Get("/local/domain/3/name"); there {
			t.Error("a node outlived its parent")
		}
		want := map[string]string{"/": "", "/local": "", "/local/domain": "", "/local/domain/10": "", "/local/domain/10/device": "", "/local/domain/10/device/pci": ""}
		if got := r.store.Tree(); !maps.Equal(got, want) {
			t.Errorf("the tree is %v, want %v", got, want)
		}
		if n := r.dialled(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	})
}

func TestRefusals(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		long := strings.Repeat("x", 4080)
		for _, tt := range []struct {
			name  string
			err   error
			class error
			says  string
		}{
			{"read", second(r.Read(ctx, "/local/domain/3/name")), fs.ErrNotExist, "read xenstore /local/domain/3/name: "},
			{"list", second(r.List(ctx, "/a")), fs.ErrNotExist, "list xenstore /a: "},
			{"root", r.Remove(ctx, "/"), syscall.EINVAL, "remove xenstore /: "},
			{"empty", r.Write(ctx, "", "x"), syscall.EINVAL, "write xenstore : "},
			{"zero byte", r.Write(ctx, "/a\x00b", "x"), syscall.EINVAL, ""},
			{"colon", r.Mkdir(ctx, "/libxl/pci/0000:01:10.0"), syscall.EINVAL, "make xenstore /libxl/pci/0000:01:10.0: "},
			{"double slash", r.Mkdir(ctx, "/a//b"), syscall.EINVAL, "one / between"},
			{"trailing slash", second(r.Watch(ctx, "/a/")), syscall.EINVAL, "watch xenstore /a/: "},
			{"long path", r.Mkdir(ctx, "/"+long[:3072]), syscall.ENAMETOOLONG, "at most 3072"},
			{"long relative path", r.Mkdir(ctx, long[:2049]), syscall.ENAMETOOLONG, "at most 2048"},
			{"long value", r.Write(ctx, "/a", long[:4078]), syscall.E2BIG, "at most 4080"},
			{"special", r.Write(ctx, "@releaseDomain", "x"), syscall.EINVAL, "write xenstore @releaseDomain: "},
		} {
			if !errors.Is(tt.err, tt.class) || !strings.Contains(tt.err.Error(), tt.says) || errors.Is(tt.err, xenstore.ErrConnection) {
				t.Errorf("%s: error %v, want %v and %q", tt.name, tt.err, tt.class, tt.says)
			}
		}
		must(t, r.Write(ctx, "/a", long[:4077]))
		r.wantRead(ctx, "/a", long[:4077])
		must(t, r.Mkdir(ctx, "/"+long[:3071]))
		if n := r.dialled(); n != 1 {
			t.Errorf("%d connections, want 1: a refusal is no reason for another", n)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestErrorNames(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Script(always("write", xsfake.Refuse("EQUOTA")))
		wantError(t, r.Write(ctx, "/a", ""), syscall.EDQUOT)
		r.store.Script(always("write", xsfake.Refuse("ENOTKNOWN")))
		if err := r.Write(ctx, "/a", ""); err == nil || !strings.Contains(err.Error(), "ENOTKNOWN") || errors.Is(err, xenstore.ErrConnection) {
			t.Errorf("error %v", err)
		}
		if n := r.dialled(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	})
}

// More domains than one answer can name.
func TestLongList(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		var want []string
		for i := range 3000 {
			name := fmt.Sprintf("%05d", i)
			want = append(want, name)
			r.store.Set("/local/domain/"+name, "")
		}
		got, err := r.List(ctx, "/local/domain")
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%d names, %v; want %d", len(got), err, len(want))
		}

		changes := 3
		r.store.Script(func(q xsfake.Request) xsfake.Fault {
			if q.Type == "directory part" && q.Value != "0\x00" && changes > 0 {
				changes--
				r.store.Set(fmt.Sprintf("/local/domain/x%d", changes), "")
			}
			return xsfake.None
		})
		got, err = r.List(ctx, "/local/domain")
		if want = append(want, "x0", "x1", "x2"); err != nil || !slices.Equal(got, want) {
			t.Errorf("%d names, %v; want %d", len(got), err, len(want))
		}

		n := 0
		r.store.Script(func(q xsfake.Request) xsfake.Fault {
			if q.Type == "directory part" && q.Value != "0\x00" {
				n++
				r.store.Set(fmt.Sprintf("/local/domain/y%d", n), "")
			}
			return xsfake.None
		})
		_, err = r.List(ctx, "/local/domain")
		wantError(t, err, syscall.EAGAIN, "changed 50 times")

		r.store.Script(always("directory part", xsfake.Refuse("ENOSYS")))
		_, err = r.List(ctx, "/local/domain")
		wantError(t, err, syscall.E2BIG, "too many children")

		r.store.Script(always("directory part", xsfake.Refuse("EIO")))
		_, err = r.List(ctx, "/local/domain")
		wantError(t, err, syscall.EIO, "list xenstore /local/domain: ")

		r.store.Script(always("directory part", xsfake.Odd))
		_, err = r.List(ctx, "/local/domain")
		wantError(t, err, xenstore.ErrConnection, "list xenstore /local/domain: ", "does not speak")
	})
}

// What comes is not what was asked for: the connection is given up, and the next call has another.
func TestOddAnswers(t *testing.T) {
	for _, tt := range []struct {
		fault xsfake.Fault
		says  string
	}{
		{xsfake.CutBefore, "EOF"}, {xsfake.CutAfter, "EOF"}, {xsfake.Torn, "EOF"},
		{xsfake.WrongID, "which was not asked"}, {xsfake.WrongType, "with type 1011"},
		{xsfake.Long, "more than 4096"}, {xsfake.Odd, "instead of OK"}, {xsfake.Refuse("no\nname"), "no\\nname"},
	} {
		t.Run(fmt.Sprint(tt.fault), func(t *testing.T) {
			in(t, func(ctx context.Context, r *rig) {
				r.store.Script(always("write", tt.fault))
				wantError(t, r.Write(ctx, "/a", "1"), xenstore.ErrConnection, "write xenstore /a: no connection to xenstored: ", tt.says)
				if n := r.asked("write"); n != 1 {
					t.Errorf("written %d times: what writes is not done again", n)
				}
				r.store.Script(nil)
				must(t, r.Write(ctx, "/a", "2"))
				r.wantRead(ctx, "/a", "2")
				if n := r.dialled(); n != 2 {
					t.Errorf("%d connections, want 2", n)
				}
			})
		})
	}
}

// What only looks is done again, once.
func TestLooksAgain(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Set("/a/b", "1")
		r.store.Script(once("read", xsfake.CutBefore))
		r.wantRead(ctx, "/a/b", "1")
		r.store.Script(once("directory", xsfake.Torn))
		if got, err := r.List(ctx, "/a"); err != nil || !slices.Equal(got, []string{"b"}) {
			t.Errorf("list: %q, %v", got, err)
		}
		r.store.Script(always("read", xsfake.CutBefore))
		before := r.asked("read")
		_, err := r.Read(ctx, "/a/b")
		wantError(t, err, xenstore.ErrConnection)
		if n := r.asked("read") - before; n != 2 {
			t.Errorf("read %d times, want 2", n)
		}
	})
}

// A xenstored that does not run is no answer about a node.
func TestNoXenstored(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Drop()
		_, err := r.Read(ctx, "/a")
		wantError(t, err, xenstore.ErrConnection, "read xenstore /a: ")
		wantError(t, r.Remove(ctx, "/a"), xenstore.ErrConnection)
		for name, dial := range map[string]func(context.Context) (io.ReadWriteCloser, error){
			"start xenstored": xenstore.Socket("/no/such/socket"), "xenfs": xenstore.Device("/no/such/device"),
		} {
			c := xenstore.New(dial)
			_, err := c.Read(ctx, "/a")
			wantError(t, err, xenstore.ErrConnection, name, "/no/such/")
			if errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a missing file is taken for a missing node: %v", err)
			}
			must(t, c.Close())
		}
		r.store.Restart()
		must(t, r.Write(ctx, "/a", "1"))
	})
}

// The kernel's device takes a request by one write, and gives answers in pieces.
func TestOneWriteEach(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		c := xenstore.New(func(ctx context.Context) (io.ReadWriteCloser, error) {
			return r.dial(ctx, func(l *line) { l.slow = true })
		})
		defer c.Close()
		for i := range 20 {
			must(t, c.Write(ctx, "/a", strings.Repeat("x", i)))
			if got, err := c.Read(ctx, "/a"); err != nil || len(got) != i {
				t.Fatalf("got %q, %v", got, err)
			}
		}
		if n := len(r.lines[0].writes); n != len(r.store.Requests()) || n != 40 {
			t.Errorf("%d writes for %d requests", n, len(r.store.Requests()))
		}
	})
}
