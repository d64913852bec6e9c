package journal

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

func TestRegionWordStates(t *testing.T) {
	var tab regionTable
	if tab.pin(7) || tab.depart(7) || tab.rested(7) || tab.state(7) != 0 {
		t.Error("an unknown region is something")
	}
	tab.activate(7)
	tab.activate(7)
	tab.activate(regionPage * 3)
	if n := tab.active.Load(); n != 2 {
		t.Errorf("%d active", n)
	}
	if got := tab.list(); !slices.Equal(got, []region{7, regionPage * 3}) {
		t.Errorf("list %v", got)
	}
	if tab.depart(7) {
		t.Error("a used region departs")
	}
	if !tab.pin(7) || tab.rested(7) || !tab.pinned() {
		t.Error("a pinned region counts as unused")
	}
	tab.unpin(7)
	if tab.depart(7) != true || tab.pin(7) || tab.state(7) != wordLeaving {
		t.Error("unused, then departing")
	}
	tab.stay(7)
	if !tab.pin(7) {
		t.Error("a region that stays cannot be pinned")
	}
	tab.unpin(7)
	if tab.depart(7) {
		t.Error("a region used since departs")
	}
	if tab.rested(7) || !tab.rested(7) || !tab.depart(7) {
		t.Error("departs in the turn of its use, or not in the next")
	}
	tab.gone(7)
	if tab.state(7) != 0 || tab.active.Load() != 1 {
		t.Error("not gone")
	}
}

func TestRegionActivatedWhileLeavingStays(t *testing.T) {
	var tab regionTable
	tab.activate(1)
	tab.rested(1)
	tab.depart(1)
	tab.activate(1) // under the image's mark
	tab.gone(1)
	if tab.state(1) != wordActive || tab.active.Load() != 1 {
		t.Error("the delete's outcome took an active region")
	}
}

func TestPinAllIsAllOrNothing(t *testing.T) {
	var tab regionTable
	tab.activate(0)
	tab.activate(1)
	if tab.pinAll(regionSpan{0, 3}) || tab.pinned() {
		t.Error("a failed pin leaves pins")
	}
	if !tab.pinAll(regionSpan{0, 2}) || !tab.pinned() {
		t.Error("not pinned")
	}
}

func TestRegionsOf(t *testing.T) {
	for _, c := range []struct {
		r    blockRange
		want regionSpan
	}{
		{blocks(0, 0), regionSpan{}},
		{blocks(0, 1), regionSpan{0, 1}},
		{blocks(1023, 1024), regionSpan{0, 1}},
		{blocks(1023, 1025), regionSpan{0, 2}},
		{blocks(1024, 4096), regionSpan{1, 4}},
	} {
		if got := regionsOf(c.r); got != c.want {
			t.Errorf("%v: %v, want %v", c.r, got, c.want)
		}
	}
}

// Golden bytes: these never change.
func TestSetPageGolden(t *testing.T) {
	var m blockMap
	m.Set(blocks(setPageBlocks+3, setPageBlocks+5))
	m.Set(blocks(setPageBlocks+300, setPageBlocks+301))
	if got := hex.EncodeToString(encodePage(&m, 1)); got != "010302a70201" {
		t.Errorf("runs: %s", got)
	}
	if got := encodePage(&m, 0); got != nil {
		t.Errorf("empty page: %x", got)
	}
	var odd blockMap
	for b := extent.FileBlock(1); b < setPageBlocks; b += 2 {
		odd.Set(blocks(b, b+1))
	}
	got := encodePage(&odd, 0)
	if len(got) != 1+setPageBytes || got[0] != tagBits || got[1] != 0xaa || got[setPageBytes] != 0xaa {
		t.Errorf("bitmap: %d bytes, % x…", len(got), got[:4])
	}
}

func TestSetPageRoundTrip(t *testing.T) {
	const seed = 5
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range 200 {
		var m, back blockMap
		for range rnd.IntN(1 << (i % 13)) {
			b := extent.FileBlock(rnd.IntN(setPageBlocks))
			m.Set(blocks(b, min(setPageBlocks, b+1+extent.FileBlock(rnd.IntN(1+i)))))
		}
		raw := encodePage(&m, 0)
		if raw == nil {
			continue
		}
		if err := decodePage(&back, 0, raw); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(slices.Collect(m.Ranges(blocks(0, setPageBlocks), 0)), slices.Collect(back.Ranges(blocks(0, setPageBlocks), 0))) {
			t.Fatalf("seed %d, page %d differs", seed, i)
		}
	}
}

func FuzzDecodePage(f *testing.F) {
	f.Add([]byte{tagRuns, 3, 2, 0xa7, 2, 1})
	f.Add([]byte{tagRuns, 0, 0})
	f.Add([]byte{tagBits})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m blockMap
		if err := decodePage(&m, 2, raw); err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if m.End() > 3*setPageBlocks || m.Count() > 0 && m.Any(blocks(0, 2*setPageBlocks)) {
			t.Error("blocks outside the page")
		}
	})
}

func TestKeysGolden(t *testing.T) {
	if k := activeKey("id", 0x01020304); string(k) != "act/id/\x01\x02\x03\x04" {
		t.Errorf("%q", k)
	}
	disk, n, err := splitNumbered([]byte("set/a/b/\x00\x00\x01\x00"), preSet)
	if err != nil || disk != "a/b" || n != 256 {
		t.Errorf("%q %d %v", disk, n, err)
	}
	for _, bad := range []string{"set/", "set/abc", "set/x/123", "set//1234"} {
		if _, _, err := splitNumbered([]byte(bad), preSet); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := keyNumber([]byte("act/id/12345"), 7); !errors.Is(err, ErrFormat) {
		t.Errorf("%v", err)
	}
}

func TestChunksSplitLargeWork(t *testing.T) {
	s := &memory.Store{}
	c := chunks{store: s}
	for i := range 3 * kv.MaxOps {
		if err := c.put(numberedKey(preActive, "d", int64(i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.flush(); err != nil || s.Applies() != 3 {
		t.Fatalf("%v, %d batches", err, s.Applies())
	}
	if err := deletePrefix(s, preActive+"d/"); err != nil || s.Applies() != 6 {
		t.Fatalf("%v, %d batches", err, s.Applies())
	}
	if err := s.Scan(nil, func(k, _ []byte) error { return errors.New(string(k)) }); err != nil {
		t.Errorf("left: %v", err)
	}
}

func TestPointsAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range Points() {
		if seen[p] || p == "" {
			t.Errorf("point %q", p)
		}
		seen[p] = true
	}
	src, err := os.ReadFile("options.go")
	if err != nil {
		t.Fatal(err)
	}
	consts, _, _ := strings.Cut(string(src), "// Points lists")
	if n := strings.Count(consts[strings.Index(consts, "// Points are"):], "= \""); n != len(seen) {
		t.Errorf("%d constants, %d points", n, len(seen))
	}
}

func TestOSFileMarksWithAttributeOrMarker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file, err := OSFile(f)
	if err != nil {
		t.Fatal(err)
	}
	tryMark(t, file)
	marker, err := openMarker(MarkerPath(path))
	if err != nil {
		t.Fatal(err)
	}
	defer marker.Close()
	tryMark(t, osFile{File: f, marker: marker})
	again, err := openMarker(MarkerPath(path))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if st, err := again.Stat(); err != nil || st.Size() != markerBlock || filepath.Base(again.Name()) != ".disk.img.vhdrelay-suspect" {
		t.Errorf("%v, %v", st, err)
	}
}

func tryMark(t *testing.T, f File) {
	t.Helper()
	for _, want := range []bool{false, true, true, false, false} {
		var err error
		if want {
			err = f.SetSuspectMark()
		} else {
			err = f.ClearSuspectMark()
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.SuspectMarked(); err != nil || got != want {
			t.Errorf("marked %v, %v; want %v", got, err, want)
		}
	}
}

func TestOSFileFacts(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file, err := OSFile(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	facts, err := file.Facts()
	size, err2 := file.Size()
	if err != nil || err2 != nil || facts.Size != 5000 || size != 5000 || facts.Ino == 0 || facts.Ctime.IsZero() {
		t.Errorf("%+v, %d, %v, %v", facts, size, err, err2)
	}
	if err := file.Datasync(); err != nil {
		t.Error(err)
	}
	if boot := hostBoot(); boot.ID == "" || facts.Ctime.Before(boot.Start) {
		t.Errorf("boot %+v, file changed %v", boot, facts.Ctime)
	}
}
