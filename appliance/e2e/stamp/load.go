package stamp

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// MostBlocks is the size of the largest write of a load, 256 KiB.
const MostBlocks = 64

// Load is what writers do. The zero value of a field means its default.
type Load struct {
	Writers int    // 4
	Modes   []Mode // of the writers, in turn; direct, buffered, synced
	Rate    int64  // bytes a second of all writers together, 20 MB
	Seed    uint64 // printed by whoever starts the load
	Span    []Span // per disk, the blocks that are written; empty or absent: all
	// Where, if set, says before every write which blocks of a disk are written, instead of Span. It is called by all writers.
	Where func(disk int) Span
	// Whole, if set, is a number of blocks: no write crosses a multiple of it, where whoever serves the disk would divide it.
	Whole int64
	Hot   float64 // share of the writes that goes to the first 256 blocks of a span, 0.4: rewritten all the time

	Open func(path string, flags int) (File, error) // of a disk; os.OpenFile, or a guest's that is reached otherwise
}

// File is an open disk. A file is used by one writer only.
type File interface {
	WriteAt(p []byte, off int64) (int, error)
	Sync() error
	Close() error
}

// Span is a half-open range of blocks.
type Span struct{ From, To int64 }

// Mode is how a writer writes.
type Mode int

// The modes. What a synced writer was told is on stable storage, and what a buffered one wrote before an fsync; what
// a direct one wrote need not be.
const (
	Direct   Mode = iota // O_DIRECT
	Buffered             // with an fsync now and then
	Synced               // O_DIRECT and O_DSYNC
)

func (o Load) withDefaults() Load {
	if o.Writers == 0 {
		o.Writers = 4
	}
	if len(o.Modes) == 0 {
		o.Modes = []Mode{Direct, Buffered, Synced}
	}
	if o.Rate == 0 {
		o.Rate = 20_000_000
	}
	if o.Hot == 0 {
		o.Hot = 0.4
	}
	if o.Open == nil {
		o.Open = func(path string, flags int) (File, error) { return os.OpenFile(path, flags, 0) }
	}
	return o
}

const (
	hotBlocks  = 256
	fsyncEvery = 16 // writes of a buffered writer
)

// Run writes to the disks, files at paths, until ctx ends, which is no error, or an operation fails. When it returns
// nothing is in flight.
func (o Load) Run(ctx context.Context, l *Log, paths []string) error {
	o = o.withDefaults()
	limit := rate.NewLimiter(rate.Limit(o.Rate), MostBlocks*BlockSize)
	g, ctx := errgroup.WithContext(ctx)
	for i := range o.Writers {
		w := &writer{load: o, log: l, id: uint32(i), mode: o.Modes[i%len(o.Modes)], rng: rand.New(rand.NewPCG(o.Seed, uint64(i)))}
		g.Go(func() error { return w.run(ctx, paths, limit) })
	}
	return g.Wait()
}

type writer struct {
	load  Load
	log   *Log
	id    uint32
	mode  Mode
	rng   *rand.Rand
	files []File
	seq   uint64
}

func (w *writer) run(ctx context.Context, paths []string, limit *rate.Limiter) error {
	defer func() {
		for _, f := range w.files {
			_ = f.Close() // what a write did not tell, a close on a tracked image does not either
		}
	}()
	flags := os.O_RDWR | []int{Direct: unix.O_DIRECT, Buffered: 0, Synced: unix.O_DIRECT | unix.O_DSYNC}[w.mode]
	for _, path := range paths {
		f, err := w.load.Open(path, flags)
		if err != nil {
			return err
		}
		w.files = append(w.files, f)
	}
	buf := aligned(MostBlocks * BlockSize)
	for {
		disk, first, count := w.choose()
		if limit.WaitN(ctx, int(count)*BlockSize) != nil {
			return nil // the context has ended, or would before this write
		}
		if err := w.write(disk, first, count, buf); err != nil {
			return err
		}
	}
}

// choose picks a range: most are one block, some are large, none crosses the end.
func (w *writer) choose() (disk int, first int64, count int32) {
	disk = w.rng.IntN(w.log.Disks())
	span := Span{To: w.log.Blocks(disk)}
	if disk < len(w.load.Span) && w.load.Span[disk].To > 0 {
		span = w.load.Span[disk]
	}
	if w.load.Where != nil {
		span = w.load.Where(disk)
	}
	blocks := span.To - span.From
	count = 1
	if w.rng.IntN(10) >= 6 {
		count = 1 + w.rng.Int32N(MostBlocks)
	}
	within := blocks
	if w.rng.Float64() < w.load.Hot {
		within = min(blocks, hotBlocks)
	}
	first = span.From + w.rng.Int64N(max(1, within-int64(count)+1))
	if w.load.Whole > 0 {
		count = int32(min(int64(count), w.load.Whole-first%w.load.Whole))
	}
	return disk, first, count
}

func (w *writer) write(disk int, first int64, count int32, buf []byte) error {
	id, ok := w.log.Begin(w.id, w.seq, disk, first, count)
	if !ok {
		return nil
	}
	p := buf[:int(count)*BlockSize]
	for i := range int64(count) {
		Stamp{ID: id, Seq: w.seq, Block: first + i, First: first, Count: uint32(count), Writer: w.id, Disk: uint32(disk)}.Put(p[i*BlockSize:])
	}
	w.seq++
	began := time.Now()
	n, err := w.files[disk].WriteAt(p, first*BlockSize)
	w.log.End(id, time.Since(began), err != nil)
	if err == nil && w.mode == Synced {
		w.log.Durable(id)
	}
	if err == nil && w.mode == Buffered && w.seq%fsyncEvery == 0 {
		before := w.log.Tick()
		if err = w.files[disk].Sync(); err == nil {
			w.log.Synced(disk, before)
		}
	}
	if err != nil {
		return fmt.Errorf("writer %d, write %d, %d of %d bytes: %w", w.id, id, n, len(p), err)
	}
	return nil
}

// aligned returns n bytes that O_DIRECT takes.
func aligned(n int) []byte {
	p := make([]byte, n+BlockSize)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) & (BlockSize - 1)
	return p[off : off+n]
}
