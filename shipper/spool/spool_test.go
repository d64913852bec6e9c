package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// fixture is a spool on a real file system that checks itself when the test ends.
func fixture(t *testing.T) (*actor, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	s, err := Open(dir, Options{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return &actor{s, newLedger()}, dir
}

func (a *actor) mustCommit(t *testing.T, epoch, previous uint64, disks ...string) *Manifest {
	t.Helper()
	if err := a.commit(epoch, previous, disks...); err != nil {
		t.Fatal(err)
	}
	list := a.s.Manifests()
	return list[len(list)-1]
}

func epochs(s *Spool) (list []uint64) {
	for _, m := range s.Manifests() {
		list = append(list, m.Epoch)
	}
	return list
}

func again(t *testing.T, dir string) *Spool {
	t.Helper()
	s, err := Open(dir, Options{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCommittedEpochIsReadBack(t *testing.T) {
	a, dir := fixture(t)
	m := a.mustCommit(t, 1, 0, "a", "../odd / name%")
	if m.Version != 1 || m.SegmentBytes() == 0 || m.Disk("nobody") != nil {
		t.Fatalf("%+v", m)
	}
	for _, s := range []*Spool{a.s, again(t, dir)} {
		if err := a.led.check(s); err != nil {
			t.Fatal(err)
		}
		got := s.Manifests()[0]
		if !got.onlyFlags(m) || !got.Closed || got.Disk("a").DiskSum != 1<<60 || !got.SealedAt.Equal(m.SealedAt) {
			t.Fatalf("%+v", got)
		}
		f, err := s.OpenSegment(got, "../odd / name%")
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
		if err != nil || f.Close() != nil {
			t.Fatal(err)
		}
		if checksum.Of(data) != got.Disk("../odd / name%").Segment.Sum {
			t.Fatal("checksum")
		}
	}
}

func TestManifestsAreCopies(t *testing.T) {
	a, _ := fixture(t)
	m := a.mustCommit(t, 1, 0, "a")
	m.Disks[1].Segment.Size, m.Disks[0].Name, m.Closed = 1, "x", false
	if got := a.s.Manifests()[0]; got.Disks[1].Segment.Size == 1 || got.Disks[0].Name == "x" || !got.Closed {
		t.Fatal("shared")
	}
}

func TestOpenSegmentErrors(t *testing.T) {
	a, _ := fixture(t)
	m := a.mustCommit(t, 1, 0, "a")
	path := a.s.path(1, 1, segmentName("a"))
	if _, err := a.s.OpenSegment(m, "new"); !errors.Is(err, ErrUnknown) {
		t.Errorf("initial: %v", err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := a.s.OpenSegment(m, "a"); !errors.Is(err, ErrSegment) {
		t.Errorf("short: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := a.s.OpenSegment(m, "a"); !errors.Is(err, ErrMissing) {
		t.Errorf("missing: %v", err)
	}
}

func TestBeginRefuses(t *testing.T) {
	a, _ := fixture(t)
	a.mustCommit(t, 5, 3, "a")
	for _, epoch := range []uint64{1, 5} {
		if _, err := a.s.Begin(1, epoch); !errors.Is(err, ErrChain) {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
	if _, err := a.s.Begin(0, 6); !errors.Is(err, ErrChain) {
		t.Errorf("older generation: %v", err)
	}
	d, err := a.s.Begin(2, 6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.s.Begin(2, 7); !errors.Is(err, ErrDraft) {
		t.Errorf("second draft: %v", err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Errorf("second abort: %v", err)
	}
	if _, err := d.Segment("a"); !errors.Is(err, ErrDraft) {
		t.Errorf("after abort: %v", err)
	}
}

func TestCommitRefusesAManifestThatDoesNotFit(t *testing.T) {
	cases := map[string]func(m *Manifest){
		"epoch":           func(m *Manifest) { m.Epoch = 9 },
		"generation":      func(m *Manifest) { m.Generation = 9 },
		"previous":        func(m *Manifest) { m.Previous = 2 },
		"unlisted":        func(m *Manifest) { m.Disks = m.Disks[:1] },
		"size":            func(m *Manifest) { m.Disks[1].Segment.Size++ },
		"no segment":      func(m *Manifest) { m.Disks[0].State, m.Disks[0].Segment = Complete, m.Disks[1].Segment },
		"state":           func(m *Manifest) { m.Disks[1].State = "odd" },
		"initial":         func(m *Manifest) { m.Disks[1].State = Initial },
		"disk twice":      func(m *Manifest) { m.Disks[0].ID = "a" },
		"disk without id": func(m *Manifest) { m.Disks[0].ID = "" },
	}
	for name, spoil := range cases {
		a, dir := fixture(t)
		d, m, err := a.draft(2, 0, "a")
		if err != nil {
			t.Fatal(err)
		}
		spoil(m)
		if err := d.Commit(m); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.Abort(); err != nil {
			t.Error(name, err)
		}
		if err := a.led.check(again(t, dir)); err != nil {
			t.Error(name, err)
		}
	}
}

func TestChainHasNoGaps(t *testing.T) {
	a, _ := fixture(t)
	a.mustCommit(t, 1, 0, "a")
	if err := a.commit(4, 2, "a"); !errors.Is(err, ErrChain) {
		t.Fatal(err)
	}
	a.mustCommit(t, 4, 1, "a") // numbers may have gaps
	if err := a.led.check(a.s); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateChangesFlagsOnly(t *testing.T) {
	a, dir := fixture(t)
	m := a.mustCommit(t, 1, 0, "a")
	for name, spoil := range map[string]func(m *Manifest){
		"previous": func(m *Manifest) { m.VMID = "x" },
		"segment":  func(m *Manifest) { m.Disk("a").Segment.Sum++ },
		"disks":    func(m *Manifest) { m.Disks = nil },
	} {
		c := m.Clone()
		spoil(c)
		if err := a.s.Update(c); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.Closed, m.OpenReason, m.RecordAttempted, m.Uploaded = false, "suspect", true, true
	if err := a.s.Update(m); err != nil {
		t.Fatal(err)
	}
	if got := again(t, dir).Manifests()[0]; got.Closed || got.OpenReason != "suspect" || !got.RecordAttempted || !got.Uploaded {
		t.Fatalf("%+v", got)
	}
	m.Closed = true
	if err := a.s.Update(m); !errors.Is(err, ErrManifest) {
		t.Errorf("open to closed: %v", err)
	}
	m.Closed, m.RecordAttempted = false, false
	if err := a.s.Update(m); !errors.Is(err, ErrManifest) {
		t.Errorf("attempt forgotten: %v", err)
	}
	m.Epoch = 7
	if err := a.s.Update(m); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
}

func TestReleaseIsInOrderAndRepeatable(t *testing.T) {
	a, dir := fixture(t)
	a.mustCommit(t, 1, 0, "a")
	a.mustCommit(t, 2, 1, "a")
	if err := a.s.Release(2); !errors.Is(err, ErrChain) {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.s.Release(1); err != nil {
			t.Fatal(err)
		}
	}
	if got := epochs(again(t, dir)); !slices.Equal(got, []uint64{2}) {
		t.Fatal(got)
	}
	if _, err := os.Stat(a.s.path(1, 1)); !isNotExist(err) {
		t.Fatal(err)
	}
}

func TestI10_GiveUpTakesTheSuffixAndTheDraft(t *testing.T) {
	a, dir := fixture(t)
	for e := uint64(1); e <= 3; e++ {
		a.mustCommit(t, e, e-1, "a")
	}
	d, m, err := a.draft(4, 3, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.s.IntendGiveUp(3); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(m); !errors.Is(err, ErrGivingUp) {
		t.Fatalf("commit of a void epoch: %v", err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.s.Begin(1, 5); !errors.Is(err, ErrGivingUp) {
		t.Fatalf("begin: %v", err)
	}
	if err := a.s.IntendGiveUp(2); err != nil { // it grows
		t.Fatal(err)
	}
	if err := a.s.IntendGiveUp(3); err != nil { // it does not shrink
		t.Fatal(err)
	}
	s := again(t, dir) // a crash: nothing is deleted, and the intent is known
	if from, pending := s.GiveUpFrom(); from != 2 || !pending || len(epochs(s)) != 3 {
		t.Fatal(from, pending, epochs(s))
	}
	for range 2 {
		if err := s.FinishGiveUp(); err != nil {
			t.Fatal(err)
		}
	}
	s = again(t, dir)
	if _, pending := s.GiveUpFrom(); pending || !slices.Equal(epochs(s), []uint64{1}) {
		t.Fatal(pending, epochs(s))
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if err := s.IntendGiveUp(0); !errors.Is(err, ErrManifest) {
		t.Fatal(err)
	}
}

// A draft sealed before a give-up was finished must not come in afterwards, on top of epochs that are gone.
func TestI4_DraftDoesNotOutliveAGiveUp(t *testing.T) {
	a, _ := fixture(t)
	a.mustCommit(t, 1, 0, "a")
	d, m, err := a.draft(2, 1, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.s.IntendGiveUp(1); err != nil {
		t.Fatal(err)
	}
	if err := a.s.FinishGiveUp(); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(m); !errors.Is(err, ErrGivingUp) {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	a.mustCommit(t, 3, 0, "a")
}

func TestBytesIsWhatIsAllocated(t *testing.T) {
	a, dir := fixture(t)
	empty := a.s.Bytes()
	a.mustCommit(t, 1, 0, "a")
	one := a.s.Bytes()
	if one < empty+8192 || one > empty+64<<10 {
		t.Fatal(empty, one)
	}
	d, _, err := a.draft(2, 1, "a")
	if err != nil {
		t.Fatal(err)
	}
	if two := a.s.Bytes(); two < one+8192 {
		t.Fatalf("draft not counted: %d after %d", two, one)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if got := a.s.Bytes(); got != one {
		t.Fatal(got, one)
	}
	if got := again(t, dir).Bytes(); got != one {
		t.Fatal(got, one)
	}
}

func TestBytesKeepsTheLastAnswer(t *testing.T) {
	d := newDisk()
	s, err := open("/spool", Options{Log: quiet}, d)
	if err != nil {
		t.Fatal(err)
	}
	a := &actor{s, newLedger()}
	a.mustCommit(t, 1, 0, "a")
	n := s.Bytes()
	for _, op := range []string{"stat", "readdir"} {
		d.fail = func(_ int, name string) error {
			if name == op {
				return errInjected
			}
			return nil
		}
		if got := s.Bytes(); got != n || n == 0 {
			t.Fatalf("%s: %d, want %d", op, got, n)
		}
	}
}

// A full disk is an error of the write like any other: it comes out, it sticks, and Abort gives all space back.
func TestI10_NoSpaceLeft(t *testing.T) {
	d := newDisk()
	s, err := open("/spool", Options{Log: quiet}, d)
	if err != nil {
		t.Fatal(err)
	}
	a := &actor{s, newLedger()}
	before := s.Bytes()
	draft, m, err := a.draft(1, 0, "a")
	if err != nil {
		t.Fatal(err)
	}
	w, err := draft.Segment("b")
	if err != nil {
		t.Fatal(err)
	}
	d.fail = func(_ int, name string) error {
		if name == "write" || name == "create" {
			return syscall.ENOSPC
		}
		return nil
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	d.fail = nil
	if _, err := w.Write([]byte("x")); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("not sticky: %v", err)
	}
	if err := draft.Commit(m); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("not sticky: %v", err)
	}
	if err := draft.Abort(); err != nil || s.Bytes() != before {
		t.Fatal(err, s.Bytes(), before)
	}
	a.mustCommit(t, 2, 0, "a")
}

func TestSegmentTwice(t *testing.T) {
	a, _ := fixture(t)
	d, _, err := a.draft(1, 0, "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Segment("a"); !errors.Is(err, ErrDraft) {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
}

func TestEpochNames(t *testing.T) {
	for name, want := range map[string]bool{
		"1-2": true, "0-18446744073709551615": true, "1": false, "01-2": false, "1-2-3": false, "a-1": false, "1-": false, "-1-2": false, "1-+2": false,
	} {
		if _, _, ok := parseEpochName(name); ok != want {
			t.Errorf("%q: %v", name, ok)
		}
	}
	if strings.Contains(segmentName("../a"), "/") {
		t.Error(segmentName("../a"))
	}
}

// The order of durable operations, as text: a change of it is read as a change of this file.
func TestOrderOfOperations(t *testing.T) {
	d := newDisk()
	s, err := open("/spool", Options{Log: quiet}, d)
	if err != nil {
		t.Fatal(err)
	}
	a := &actor{s, newLedger()}
	var got bytes.Buffer
	last := ""
	d.trace = func(_ int, name, path string) {
		if line := name + " " + path + "\n"; name != "stat" && name != "readdir" && line != last {
			got.WriteString(line)
			last = line
		}
	}
	step := func(name string, do func() error) {
		got.WriteString("# " + name + "\n")
		if err := do(); err != nil {
			t.Fatal(name, err)
		}
	}
	step("commit", func() error { return a.commit(1, 0, "a") })
	step("update", func() error { return a.attempt(1) })
	step("release", func() error { return a.release(1) })
	step("commit", func() error { return a.commit(2, 1) })
	step("commit", func() error { return a.commit(3, 2) })
	step("intend to give up", func() error { return s.IntendGiveUp(2) })
	step("finish giving up", s.FinishGiveUp)
	path := filepath.Join("testdata", "order.txt")
	want, err := os.ReadFile(path)
	if *update {
		err = durable.WriteFile(path, got.Bytes())
		want = got.Bytes()
	}
	if err != nil || got.String() != string(want) {
		t.Errorf("%v\n%s", err, got.String())
	}
}

// A capture reads the checksums of a segment back before it commits: the disk's checksum goes into the manifest.
func TestDraftIsReadBackBeforeTheCommit(t *testing.T) {
	a, _ := fixture(t)
	d, err := a.s.Begin(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	f, err := d.Segment("a")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	for _, want := range []string{"abcd", "efgh"} {
		if _, err := f.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := f.ReadAt(got, 2); err != nil || string(got[:n]) != "cdef" {
		t.Fatalf("%q %v", got[:n], err)
	}
	if n, err := f.ReadAt(got, 6); !errors.Is(err, io.EOF) || string(got[:n]) != "gh" {
		t.Fatalf("%q %v", got[:n], err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
}
