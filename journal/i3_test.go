package journal

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// The cut test: writers that share every block, each owning a slot of it,
// stamp what they write with their sequence number, over real files. After
// each epoch the fold of all captures must be the state at one cut that lies
// after every write answered before the seal was asked for and before every
// write begun after it returned, and no write may be in it that began after the
// answer of one that is not.
const (
	cutWriters = 4
	cutBlocks  = 48
	slotBytes  = extent.BlockSize / cutWriters
)

type cutWrite struct {
	disk            int
	block           extent.FileBlock
	began, answered int64 // tickets of one clock; answered 0: not yet
}

type cutWriter struct {
	mu struct {
		sync.Mutex
		log []cutWrite // sequence number i+1
	}
}

type cutRig struct {
	t       *testing.T
	r       *rig
	files   []*os.File
	disks   []*Disk
	clock   atomic.Int64
	budget  atomic.Int64 // writes the writers may still begin: bounds the log, not the race
	writers [cutWriters]cutWriter
	fold    [][]byte
}

func newCutRig(t *testing.T, disks int) *cutRig {
	c := &cutRig{t: t, r: newRig(t, Options{})}
	dir := t.TempDir()
	for i := range disks {
		f, err := os.Create(filepath.Join(dir, string(rune('a'+i))+".img"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if err := f.Truncate(cutBlocks * extent.BlockSize); err != nil {
			t.Fatal(err)
		}
		file, err := OSFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c.files = append(c.files, f)
		c.disks = append(c.disks, c.r.disk(f.Name(), file))
		c.fold = append(c.fold, make([]byte, cutBlocks*extent.BlockSize))
	}
	return c
}

// write does one write of writer w: its slot of one block.
func (c *cutRig) write(w int, rnd *rand.Rand) {
	wr := &c.writers[w]
	op := cutWrite{disk: rnd.IntN(len(c.disks)), block: extent.FileBlock(rnd.IntN(cutBlocks))}
	wr.mu.Lock()
	op.began = c.clock.Add(1)
	wr.mu.log = append(wr.mu.log, op)
	seq := len(wr.mu.log)
	wr.mu.Unlock()
	p := make([]byte, slotBytes)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(seq))
	}
	ch := extent.Change{Off: off(op.block) + int64(w)*slotBytes, Len: slotBytes}
	d := c.disks[op.disk]
	pass, err := d.Begin(ch)
	if err != nil {
		c.t.Error(err)
		return
	}
	_, err = c.files[op.disk].WriteAt(p, ch.Off)
	d.End(ch, pass, err)
	wr.mu.Lock()
	wr.mu.log[seq-1].answered = c.clock.Add(1)
	wr.mu.Unlock()
}

// epoch seals, captures and folds, and returns the tickets around the seal.
func (c *cutRig) epoch(rnd *rand.Rand) (asked, returned int64) {
	c.progress(200)
	asked = c.clock.Add(1)
	s, err := c.r.vm.Seal(SealRequest{SavedLimit: 1 << 30})
	returned = c.clock.Add(1)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := s.Wait(context.Background()); err != nil {
		c.t.Fatal(err)
	}
	c.progress(50) // the guests overwrite what the capture wants
	for i, sd := range s.Disks {
		runs := slices.Collect(sd.List(1 + int64(rnd.IntN(5))))
		rnd.Shuffle(len(runs), func(a, b int) { runs[a], runs[b] = runs[b], runs[a] })
		for _, r := range runs {
			p := c.fold[i][r.Offset() : r.Offset()+r.Bytes()]
			if rnd.IntN(4) == 0 {
				if err := sd.PeekBlocks(r, p); err != nil {
					c.t.Error(err)
				}
			}
			if err := sd.ReadBlocks(r, p); err != nil {
				c.t.Error(err)
			}
		}
	}
	if s.Torn() {
		c.t.Error("torn without need")
	}
	spooled(c.t, s)
	return asked, returned
}

// progress returns when n more tickets were drawn, two a write: without it an
// idle moment of the writers would let epochs pass that prove nothing.
func (c *cutRig) progress(n int64) {
	for until := c.clock.Load() + n; c.clock.Load() < until; {
		c.budget.Store(2000) // they may have used it up
		runtime.Gosched()
	}
}

// cut returns the newest sequence number of writer w in the fold.
func (c *cutRig) cut(w int) (newest uint64) {
	for _, img := range c.fold {
		for b := range cutBlocks {
			slot := img[b*extent.BlockSize+w*slotBytes:][:slotBytes]
			first := binary.LittleEndian.Uint64(slot)
			for i := 0; i < slotBytes; i += 8 {
				if binary.LittleEndian.Uint64(slot[i:]) != first {
					c.t.Errorf("writer %d, block %d is torn within one request", w, b)
				}
			}
			newest = max(newest, first)
		}
	}
	return newest
}

// judge checks that the fold is one admissible cut.
func (c *cutRig) judge(asked, returned int64) {
	c.t.Helper()
	var lastBegan int64
	logs := make([][]cutWrite, cutWriters)
	cuts := make([]int, cutWriters)
	for w := range cutWriters {
		c.writers[w].mu.Lock()
		logs[w] = slices.Clone(c.writers[w].mu.log)
		c.writers[w].mu.Unlock()
		cuts[w] = int(c.cut(w))
		c.judgeWriter(w, logs[w], cuts[w], asked, returned)
		if cuts[w] > 0 {
			lastBegan = max(lastBegan, logs[w][cuts[w]-1].began)
		}
	}
	for w, log := range logs {
		if i := cuts[w]; i < len(log) && log[i].answered != 0 && log[i].answered < lastBegan {
			c.t.Errorf("write %d of writer %d is left out though it was answered before one that is in", i+1, w)
		}
	}
}

func (c *cutRig) judgeWriter(w int, log []cutWrite, cut int, asked, returned int64) {
	want := make([][]uint64, len(c.disks))
	for i := range want {
		want[i] = make([]uint64, cutBlocks)
	}
	for i, op := range log {
		if i < cut {
			want[op.disk][op.block] = uint64(i + 1)
			if op.began > returned {
				c.t.Errorf("write %d of writer %d began after the seal and is in it", i+1, w)
			}
		} else if op.answered != 0 && op.answered < asked {
			c.t.Errorf("write %d of writer %d was answered before the seal and is not in it", i+1, w)
		}
	}
	for i, img := range c.fold {
		for b := range cutBlocks {
			if got := binary.LittleEndian.Uint64(img[b*extent.BlockSize+w*slotBytes:]); got != want[i][b] {
				c.t.Errorf("writer %d, disk %d, block %d: sequence %d, want %d at cut %d", w, i, b, got, want[i][b], cut)
			}
		}
	}
}

func TestI2_I3_FoldIsOneAdmissibleCut(t *testing.T) {
	const seed = 1
	c := newCutRig(t, 2)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range cutWriters {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c.budget.Add(-1) >= 0 {
					c.write(w, rnd)
				} else {
					runtime.Gosched()
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(seed, 100))
	epochs := 150
	if testing.Short() {
		epochs = 20
	}
	for range epochs {
		asked, returned := c.epoch(rnd)
		c.judge(asked, returned)
		if t.Failed() {
			t.Logf("seed %d", seed)
			break
		}
	}
	close(stop)
	wg.Wait()
	c.r.check()
	st := c.r.j.Stats()
	if st.SavedBytes == 0 {
		t.Error("no block was ever saved: the test proves nothing")
	}
	t.Logf("%d writes, %d KiB saved", c.clock.Load()/2, st.SavedBytes>>10)
	c.r.close()
}
