package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"vfbroker/broker"
	"vfbroker/test/fakehost"
)

// TestTornPages tears the real journal under the whole broker. A power cut in a commit leaves some of its pages on
// the disk, in any order, and maybe half of one. For each commit of a scenario, a daemon starts on images mixed of the pages before
// and after it, on a host that has rebooted. The journal holds then what was before the commit or what is after it, and the daemon goes on
// with that; or it is damaged, and nothing is lent until it is moved away, and also on a host where guests live, from
// whom the daemon learns what they hold. The model's disk is told what bbolt wrote, so that the checks are those of every other run.
func TestTornPages(t *testing.T) {
	t.Parallel()
	host := template(t)
	stride := 3 // a share; the rest with -deep
	if *deep {
		stride = 1
	}
	commits := tornScenario(t, host.Clone())
	if len(commits) < 10 {
		t.Fatalf("the scenario has %d commits, want 10 and more", len(commits))
	}
	outcomes, images := map[string]int{}, 0
	for i := 0; i < len(commits); i += stride {
		c := commits[i]
		for what, image := range c.images() {
			images++
			is := c.recover(t, fmt.Sprintf("%s (%d.): with %s", c.name, i+1, what), image)
			outcomes[is]++
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("of %d commits, %d images: %v", len(commits), images, outcomes)
	if outcomes["before"] == 0 || outcomes["after"] == 0 || outcomes["damaged"] == 0 {
		t.Errorf("outcomes %v: one of the three never came", outcomes)
	}
	tallyLock.Lock()
	defer tallyLock.Unlock()
	tally.TornImages += images
}

// tornCommit is a commit: the journal's file before and after it, and what a power cut leaves of the rest.
type tornCommit struct {
	name       string
	old, young []byte
	was, is    *snapshot // the disk without it, and with it
	living     *snapshot // after it, with guests that live on
}

// boltStore is bbolt's journal in a world, whose disk it tells what is durable.
type boltStore struct {
	*broker.JournalFile
	w    *world
	path string
	took []tornCommit
}

func openBolt(t *testing.T, w *world, path string) *boltStore {
	file, err := broker.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &boltStore{JournalFile: file, w: w, path: path}
	w.store = s
	return s
}

func (s *boltStore) Commit(ctx context.Context, batch broker.Batch) error {
	name, w := "commit "+describe(batch), s.w
	return w.sched.pass(name, true, func() error {
		c := tornCommit{name: name, was: w.survivors(powerCut)}
		var err error
		if c.old, err = os.ReadFile(s.path); err != nil {
			return err
		}
		if err := s.JournalFile.Commit(ctx, batch); err != nil {
			return err
		}
		record, err := json.Marshal(batch)
		if err != nil {
			return err
		}
		w.disk.append(record)
		w.disk.sync()
		c.is, c.living = w.survivors(powerCut), w.survivors(kill)
		c.young, err = os.ReadFile(s.path)
		s.took = append(s.took, c)
		return err
	}, nil)
}

// tornScenario acquires and releases on bbolt, and returns the commits.
func tornScenario(t *testing.T, host *fakehost.Host) (commits []tornCommit) {
	path := filepath.Join(t.TempDir(), "journal.db")
	synctest.Test(t, func(t *testing.T) {
		w := founded(host, usual()).resume(t, 1)
		s := openBolt(t, w, path)
		defer s.Close()
		defer w.close()
		w.boot(nil)
		w.rest()
		for _, act := range []func(*world){asks("a", "g0"), asks("b", "g1"), gives("a"), asks("c", keeper)} {
			act(w)
			w.checkSettled()
		}
		report(t, w, "torn pages: without a crash")
		commits = s.took
	})
	return commits
}

// images yields mixtures of a commit's pages by their names. The first that changed is bbolt's meta page, which it writes last,
// when the others are synced. That it is new and all others old takes a disk that lies about that sync: the pages may then be those of a commit before,
// whole and with the right sum.
func (c tornCommit) images() func(yield func(string, []byte) bool) {
	page := os.Getpagesize()
	old := append(slices.Clone(c.old), make([]byte, max(0, len(c.young)-len(c.old)))...)
	var changed []int
	for at := 0; at < len(old); at += page {
		if !bytes.Equal(old[at:at+page], c.young[at:at+page]) {
			changed = append(changed, at)
		}
	}
	meta, data := changed[0], changed[1:]
	with := func(of []byte, from, to int, pages ...int) []byte { // parts of pages of another image
		image := slices.Clone(c.young)
		if &of[0] == &c.young[0] {
			image = slices.Clone(old)
		}
		for _, at := range pages {
			copy(image[at+from:at+to], of[at+from:])
		}
		return image
	}
	half := data[:len(data)/2]
	return func(yield func(string, []byte) bool) {
		all := map[string][]byte{
			"nothing new":                                   old,
			"everything new":                                c.young,
			"the meta page old":                             with(old, 0, page, meta),
			"the meta page new, all others old":             with(c.young, 0, page, meta),
			"the begin of the meta page new":                with(old, 40, page, meta),
			"half of the data pages new, the meta page old": with(c.young, 0, page, half...),
			"half of the data pages old":                    with(old, 0, page, half...),
		}
		for i, at := range data {
			all[fmt.Sprintf("data page %d of %d old", i+1, len(data))] = with(old, 0, page, at)
			all[fmt.Sprintf("the end of data page %d of %d old", i+1, len(data))] = with(old, page/2, page, at)
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if !yield(name, all[name]) {
				return
			}
		}
	}
}

// recover starts a daemon on an image and says what that holds.
func (c tornCommit) recover(t *testing.T, story string, image []byte) (is string) {
	path := filepath.Join(t.TempDir(), "journal.db")
	open := func(from *snapshot, play func(w *world, s *boltStore)) {
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			w := from.resume(t, 2)
			s := openBolt(t, w, path)
			defer func() { s.Close() }()
			defer w.close()
			play(w, s)
			report(t, w, story+": "+is)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		is = c.look(t, path, story, image)
	})
	switch is {
	case "before":
		open(c.was, whole)
	case "after":
		open(c.is, whole)
	case "damaged":
		for _, from := range []*snapshot{c.is, c.living} {
			open(from, func(w *world, s *boltStore) { damaged(t, w, s, image) })
		}
	}
	return is
}

// look says what an image holds.
func (c tornCommit) look(t *testing.T, path, story string, image []byte) string {
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := broker.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	switch holds := textOf(t, s); {
	case s.Problem() != nil:
		return "damaged"
	case holds == textOf(t, store{disk: c.was.disk}):
		return "before"
	case holds == textOf(t, store{disk: c.is.disk}):
		return "after"
	default:
		t.Errorf("%s:\n"+violated+"I6: the journal holds neither what was before the commit nor what is after it:\n%s\n%s\n%s", story, holds, textOf(t, store{disk: c.was.disk}), textOf(t, store{disk: c.is.disk}))
		return "neither"
	}
}

// textOf is what a journal holds, and how many audit records. The epoch is each one's own.
func textOf(t *testing.T, s broker.Store) string {
	j, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	j.Epoch, j.New = "", false
	slices.SortFunc(j.Leases, byCounter)
	slices.SortFunc(j.Functions, func(a, b broker.FunctionRecord) int { return byName(a.ID, b.ID) })
	slices.SortFunc(j.PFs, func(a, b broker.PFRecord) int { return bytes.Compare([]byte(a.ID), []byte(b.ID)) })
	records := 0
	_, _ = s.Audit(0, func(uint64, []byte) error { records++; return nil }) // a damaged one has none
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %d", text, records)
}

// whole is what must be with a journal that holds one of the two: the daemon goes on with it, lends and takes back.
func whole(w *world, s *boltStore) {
	if !w.boot(nil) {
		return
	}
	w.decided()
	w.checkSettled()
	w.kind()
	w.rest()
	w.checkSettled()
	held := len(w.disk.live())
	asks("z", "g1")(w)
	if l, ok := w.leaseOf("z"); ok != (held < len(w.names())) || ok && l.State != broker.Active {
		w.violate("I6: after a torn commit, with %d leases, another is %q", held, l.State)
	}
	gives("z")(w)
	w.checkSettled()
	if got, want := textOf(w.t.(*testing.T), s), textOf(w.t.(*testing.T), store{disk: w.disk}); got != want {
		w.violate("I6: after a torn commit the journal holds %s, and was told %s", got, want)
	}
}

// damaged is what must be with a journal that cannot be read: nothing is lent, what guests hold is known and left to them,
// and the file is not touched. When it is moved away, the daemon goes on with what it learned from them.
func damaged(t *testing.T, w *world, s *boltStore, image []byte) {
	w.loseJournal()
	if !w.boot(nil) {
		return
	}
	w.learning = true // and cannot write it down
	held := w.hv.Dump()
	w.settle()
	asksDamaged(w)
	known := map[string]bool{}
	for _, l := range w.list(w.Broker) {
		if l.State.Live() {
			known[l.Addr.String()] = true
		}
	}
	for _, g := range guests {
		for _, a := range w.hv.Held(g) {
			if !known[a.String()] {
				w.violate("I6: the journal is damaged, guest %s holds %s, and the daemon does not know it", g, a)
			}
		}
	}
	if now := w.hv.Dump(); !maps.Equal(held, now) {
		w.violate("I6: the journal is damaged, and guests that had %v have %v", held, now)
	}
	if got, err := os.ReadFile(s.path); err != nil || !bytes.Equal(got, image) {
		w.violate("I6: the damaged journal was written to (%v)", err)
	}
	w.endDaemon()
	s.Close()
	if err := os.Rename(s.path, s.path+".damaged"); err != nil {
		t.Fatal(err)
	}
	w.loseJournal()
	*s = *openBolt(t, w, s.path)
	w.store = s
	whole(w, s)
	givesAll(w)
	w.rest()
	w.checkSettled()
	if n := len(w.disk.live()); n > 0 {
		w.violate("I6: after the damaged journal was moved away and all is given back, %d leases live", n)
	}
}

// asksDamaged: nothing is lent that could not be written down.
func asksDamaged(w *world) {
	for _, r := range []broker.Request{{RequestID: "y", Guest: "g1"}, {RequestID: "x", Guest: "g0", PF: "mac:" + macB}} {
		w.call(func() {
			if l, err := w.acquire(w.Broker, r); err == nil {
				w.violate("I7: the journal is damaged, and %s is lent by %s", l.Function, r.RequestID)
			}
		})
	}
}
