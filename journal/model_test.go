package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

var errDisk = errors.New("model: input/output error")

// modelFile is an image that forgets what was not synced: block b holds a
// stamp, 0 for zeros; a crash keeps of every block either the synced stamp or
// the newest, by chance.
type modelFile struct {
	mu struct {
		sync.Mutex
		now, synced         map[extent.FileBlock]uint64
		size, syncedSize    int64
		marked              bool
		ctime               time.Time
		syncs, marks        int
		syncErr, markErr    error
		readErr             error
		beforeSync, onClear func()
	}
}

func newModelFile(blocks int64) *modelFile {
	f := &modelFile{}
	f.mu.now, f.mu.synced = map[extent.FileBlock]uint64{}, map[extent.FileBlock]uint64{}
	f.mu.size = blocks * extent.BlockSize
	f.mu.syncedSize = f.mu.size
	f.mu.ctime = time.Unix(1000, 0)
	return f
}

func (f *modelFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.readErr != nil {
		return 0, f.mu.readErr
	}
	n := int(min(int64(len(p)), max(0, f.mu.size-off)))
	for i := 0; i < n; i += extent.BlockSize {
		clear(p[i:min(n, i+extent.BlockSize)])
		binary.LittleEndian.PutUint64(p[i:], f.mu.now[extent.FileBlock((off+int64(i))/extent.BlockSize)])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// do performs a change with a stamp.
func (f *modelFile) do(c extent.Change, stamp uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.ctime = f.mu.ctime.Add(time.Millisecond)
	switch c.Kind {
	case extent.Truncate:
		f.mu.size = c.Off
		end := extent.FileBlock((c.Off + extent.BlockSize - 1) / extent.BlockSize)
		maps.DeleteFunc(f.mu.now, func(b extent.FileBlock, _ uint64) bool { return b >= end })
		return
	case extent.Discard, extent.Zero:
		stamp = 0
	default:
		f.mu.size = max(f.mu.size, c.Off+c.Len)
	}
	r := c.Blocks()
	for b := r.Start; b < r.End; b++ {
		f.mu.now[b] = stamp
	}
}

func (f *modelFile) Datasync() error {
	f.mu.Lock()
	before := f.mu.beforeSync
	f.mu.Unlock()
	if before != nil {
		before()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.syncs++
	if f.mu.syncErr != nil {
		return f.mu.syncErr
	}
	f.mu.synced, f.mu.syncedSize = maps.Clone(f.mu.now), f.mu.size
	return nil
}

func (f *modelFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.size, nil
}

func (f *modelFile) Facts() (Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Facts{Size: f.mu.size, Mtime: f.mu.ctime, Ctime: f.mu.ctime, Ino: 1}, nil
}

func (f *modelFile) SetSuspectMark() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.markErr == nil {
		f.mu.marked = true
		f.mu.marks++
	}
	return f.mu.markErr
}

func (f *modelFile) ClearSuspectMark() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.marked = false
	if f.mu.onClear != nil {
		f.mu.onClear()
	}
	return nil
}

func (f *modelFile) SuspectMarked() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.marked, nil
}

// set changes the model's faults under its lock.
func (f *modelFile) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// crash returns the image as a power cut may leave it.
func (f *modelFile) crash(rnd *rand.Rand) *modelFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := newModelFile(0)
	c.mu.marked = f.mu.marked
	c.mu.size = f.mu.size
	touched := slices.Sorted(maps.Keys(f.mu.now)) // sorted: the seed decides
	for _, b := range touched {
		stamp := f.mu.synced[b]
		if rnd.IntN(2) == 0 {
			stamp = f.mu.now[b]
		}
		c.mu.now[b] = stamp
	}
	c.mu.synced, c.mu.syncedSize = maps.Clone(c.mu.now), c.mu.size
	return c
}

func (f *modelFile) stamp(b extent.FileBlock) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.now[b]
}

// rig is a journal over models.
type rig struct {
	t     *testing.T
	store *memory.Store
	opts  Options
	j     *Journal
	vm    *VM
}

var modelBoot = Boot{ID: "boot", Start: time.Unix(0, 0)}

func newRig(t *testing.T, opts Options) *rig {
	return openRig(t, &memory.Store{}, opts)
}

func openRig(t *testing.T, store *memory.Store, opts Options) *rig {
	t.Helper()
	if opts.Boot == nil {
		opts.Boot = func() Boot { return modelBoot }
	}
	if opts.Saved == "" {
		opts.Saved = t.TempDir()
	}
	j, err := Open(store, opts)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := j.VM("vm")
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t, store, opts, j, vm}
}

func (r *rig) disk(name string, f File) *Disk {
	r.t.Helper()
	d, err := r.vm.AddDisk(name, f, Identity{Ino: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.j.Close(context.Background()); err != nil {
		r.t.Fatal(err)
	}
}

// check runs the journal's own check.
func (r *rig) check() {
	r.t.Helper()
	if err := r.j.Check(); err != nil {
		r.t.Error(err)
	}
}

// write does a whole tracked write of blocks.
func write(t testing.TB, d *Disk, f *modelFile, b extent.FileBlock, n int64, stamp uint64) {
	t.Helper()
	change(t, d, f, extent.Change{Off: int64(b) * extent.BlockSize, Len: n * extent.BlockSize}, stamp)
}

func change(t testing.TB, d *Disk, f *modelFile, c extent.Change, stamp uint64) {
	t.Helper()
	p, err := d.Begin(c)
	if err != nil {
		t.Errorf("begin %v: %v", c, err)
		return
	}
	f.do(c, stamp)
	d.End(c, p, nil)
}

func (r *rig) seal(req SealRequest) *Sealed {
	r.t.Helper()
	if req.SavedLimit == 0 {
		req.SavedLimit = 1 << 40
	}
	s, err := r.vm.Seal(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// sealed seals and waits.
func (r *rig) sealed(req SealRequest) *Sealed {
	r.t.Helper()
	s := r.seal(req)
	if err := s.Wait(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// capture reads the whole list of one disk: stamps by block.
func capture(t testing.TB, sd *SealedDisk, maxRun int64) map[extent.FileBlock]uint64 {
	t.Helper()
	out := map[extent.FileBlock]uint64{}
	for r := range sd.List(maxRun) {
		p := make([]byte, r.Bytes())
		if err := sd.ReadBlocks(r, p); err != nil {
			t.Errorf("read %v: %v", r, err)
			return out
		}
		for b := r.Start; b < r.End; b++ {
			out[b] = binary.LittleEndian.Uint64(blockOf(r, p, b))
		}
	}
	return out
}

func spooled(t testing.TB, s *Sealed) {
	t.Helper()
	if err := s.Spooled(); err != nil {
		t.Fatal(err)
	}
}

func blocks(start, end extent.FileBlock) blockRange { return blockRange{Start: start, End: end} }

func off(b extent.FileBlock) int64 { return int64(b) * extent.BlockSize }

func hasRecord(s kv.Store, d *Disk, r region) bool {
	_, err := s.Get(activeKey(d.id, r))
	return err == nil
}

func savedPath(r *rig, d *Disk) string { return filepath.Join(r.opts.Saved, d.id+savedSuffix) }

// lapse lets fake time pass in a synctest bubble.
func lapse(d time.Duration) { <-time.After(d) }
