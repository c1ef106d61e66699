package xenstore_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vfbroker/guestshim/xenstore"
	"vfbroker/test/hvsuite/xsfake"
)

func TestUpdate(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Set("/b/dev-0", "x")
		var order []string
		r.store.OnWrite(func(path, value string) { order = append(order, path+"="+value) })
		ch := r.watch(ctx, "/b")
		must(t, r.Update(ctx, func(tx *xenstore.Tx) error {
			must(t, tx.Write("/b/num_devs", "1"))
			must(t, tx.Mkdir("/b/dev-1/x"))
			must(t, tx.Remove("/b/dev-0"))
			must(t, tx.Remove("/no/such"))
			if got, err := tx.Read("/b/num_devs"); err != nil || got != "1" {
				t.Errorf("its own change: %q, %v", got, err)
			}
			if got, err := tx.List("/b"); err != nil || !slices.Equal(got, []string{"dev-1", "num_devs"}) {
				t.Errorf("its own children: %q, %v", got, err)
			}
			_, err := tx.Read("/b/dev-0")
			wantError(t, err, fs.ErrNotExist, "read xenstore /b/dev-0: ")
			if _, err := tx.List("/bad path"); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("error %v", err)
			}
			r.wantRead(ctx, "/b/dev-0", "x")
			if told(ch) {
				t.Error("told before the end")
			}
			return nil
		}))
		if !told(ch) {
			t.Error("not told of the changes")
		}
		if _, err := r.Read(ctx, "/b/dev-0"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error %v", err)
		}
		if want := []string{"/b/num_devs=1"}; !slices.Equal(order, want) {
			t.Errorf("written %q, want %q", order, want)
		}
	})
}

// A function that fails changes nothing and leaves no transaction.
func TestUpdateFails(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		failed := errors.New("no")
		err := r.Update(ctx, func(tx *xenstore.Tx) error {
			must(t, tx.Write("/a", "1"))
			return failed
		})
		if err != failed {
			t.Errorf("error %v", err)
		}
		func() {
			defer func() { _ = recover() }()
			_ = r.Update(ctx, func(tx *xenstore.Tx) error { panic("no") })
		}()
		ending, cancel := context.WithCancel(ctx)
		err = r.Update(ending, func(tx *xenstore.Tx) error {
			must(t, tx.Write("/a", "1"))
			cancel()
			return nil
		})
		wantError(t, err, context.Canceled, "commit xenstore transaction: ")
		synctest.Wait()
		if _, there := r.store.Get("/a"); there || r.store.Transactions() != 0 || r.dialled() != 1 {
			t.Errorf("written %v, %d transactions, %d connections", there, r.store.Transactions(), r.dialled())
		}
	})
}

func TestConflict(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		r.store.Set("/n", "0")
		runs := 0
		add := func(tx *xenstore.Tx) error {
			runs++
			old, err := tx.Read("/n")
			if err != nil {
				return err
			}
			if runs <= 3 {
				r.store.Set("/n", fmt.Sprint(runs))
			}
			return tx.Write("/n", old+"+")
		}
		must(t, r.Update(ctx, add))
		if got, _ := r.store.Get("/n"); got != "3+" || runs != 4 {
			t.Errorf("%q after %d runs", got, runs)
		}
		runs = 0
		err := r.Update(ctx, func(tx *xenstore.Tx) error {
			runs++
			r.store.Set("/n", fmt.Sprint(runs))
			return tx.Write("/n", "x")
		})
		wantError(t, err, syscall.EAGAIN, "commit xenstore transaction: ", "50 times")
		if runs != 50 || r.store.Transactions() != 0 {
			t.Errorf("%d runs, %d transactions", runs, r.store.Transactions())
		}
		must(t, r.Update(ctx, func(tx *xenstore.Tx) error {
			r.store.Set("/elsewhere", "1") // no conflict
			return tx.Write("/n", "y")
		}))
	})
}

// Before the commit nothing was done, so that it is done again; after, nobody knows.
func TestUpdateLost(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		for _, kind := range []string{"transaction start", "write", "read"} {
			r.store.Script(once(kind, xsfake.CutAfter))
			runs := 0
			must(t, r.Update(ctx, func(tx *xenstore.Tx) error {
				runs++
				_, _ = tx.Read("/a")
				return tx.Write("/a", kind)
			}))
			if got, _ := r.store.Get("/a"); got != kind || runs > 2 {
				t.Errorf("%s is lost: %q after %d runs", kind, got, runs)
			}
		}
		for fault, want := range map[xsfake.Fault]string{xsfake.CutBefore: "read", xsfake.CutAfter: "new"} {
			r.store.Script(once("transaction end", fault))
			err := r.Update(ctx, func(tx *xenstore.Tx) error { return tx.Write("/a", "new") })
			wantError(t, err, xenstore.ErrConnection, "commit xenstore transaction: ")
			if got, _ := r.store.Get("/a"); got != want {
				t.Errorf("fault %v: %q, want %q", fault, got, want)
			}
			r.store.Set("/a", "read")
		}
		r.store.Script(always("write", xsfake.CutBefore))
		runs := 0
		err := r.Update(ctx, func(tx *xenstore.Tx) error { runs++; return tx.Write("/a", "x") })
		wantError(t, err, xenstore.ErrConnection, "write xenstore /a: ")
		if runs != 2 {
			t.Errorf("%d runs", runs)
		}
		r.store.Script(nil)
		runs = 0
		must(t, r.Update(ctx, func(tx *xenstore.Tx) error { // it does not notice
			if runs++; runs == 1 {
				r.store.Restart()
				synctest.Wait()
			}
			return nil
		}))
		if runs != 2 {
			t.Errorf("%d runs after a restart in the middle", runs)
		}
		r.store.Script(once("transaction end", xsfake.Refuse("ENOENT")))
		runs = 0
		must(t, r.Update(ctx, func(tx *xenstore.Tx) error { runs++; return tx.Write("/a", "again") }))
		if got, _ := r.store.Get("/a"); got != "again" || runs != 2 {
			t.Errorf("a forgotten transaction: %q after %d runs", got, runs)
		}
		r.store.Script(always("transaction end", xsfake.Refuse("ENOENT")))
		err = r.Update(ctx, func(tx *xenstore.Tx) error { return nil })
		if wantError(t, err, xenstore.ErrConnection, "does not know it"); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a missing transaction is taken for a missing node: %v", err)
		}
		r.store.Script(always("transaction end", xsfake.Refuse("ENOSPC")))
		err = r.Update(ctx, func(tx *xenstore.Tx) error { return nil })
		wantError(t, err, syscall.ENOSPC, "commit xenstore transaction: ")
		r.store.Script(always("transaction start", xsfake.Odd))
		err = r.Update(ctx, func(tx *xenstore.Tx) error { t.Error("it runs"); return nil })
		wantError(t, err, xenstore.ErrConnection, "start xenstore transaction: ", "does not speak")
	})
}

// Many do everything at once while xenstored comes and goes: nothing hangs, and
// what was acknowledged is there.
func TestAllAtOnce(t *testing.T) {
	in(t, func(ctx context.Context, r *rig) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		r.store.Set("/sum", "")
		done := make(chan int)
		for i := range 6 {
			go func() {
				acked := 0
				for n := 0; ctx.Err() == nil; n++ {
					at := fmt.Sprintf("/w/%d", i)
					if r.Write(ctx, at, fmt.Sprint(n)) == nil {
						if got, err := r.Read(ctx, at); err == nil && got != fmt.Sprint(n) {
							t.Errorf("%s: %q, want %d", at, got, n)
						}
					}
					if r.Update(ctx, func(tx *xenstore.Tx) error {
						old, err := tx.Read("/sum")
						if err != nil {
							return err
						}
						return tx.Write("/sum", fmt.Sprint(len(old))+old[:min(len(old), 100)])
					}) == nil {
						acked++
					}
					watching, stop := context.WithCancel(ctx)
					if ch, err := r.Watch(watching, at); err == nil {
						<-ch
					}
					stop()
					time.Sleep(time.Duration(i+1) * 20 * time.Millisecond)
				}
				done <- acked
			}()
		}
		for range 10 {
			time.Sleep(700 * time.Millisecond)
			r.store.Restart()
			time.Sleep(100 * time.Millisecond)
			r.store.Freeze()
			time.Sleep(50 * time.Millisecond)
			r.store.Thaw()
		}
		for range 6 {
			if n := <-done; n < 10 {
				t.Errorf("%d updates", n)
			}
		}
		time.Sleep(5 * time.Second)
		if w, n := r.store.Watches(), r.store.Transactions(); len(w) != 0 || n != 0 {
			t.Errorf("left behind: watches %q, %d transactions", w, n)
		}
	})
}
