package fsx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Defaults of Options.
const (
	DefaultMax = 256 << 10
	keep       = 25 // operations that a failure shows
)

// Pair is a file at the mount and the plain file that must stay equal to it. If there is no plain file it begins as a
// copy; if there is none at the mount either, both begin empty.
type Pair struct{ Mount, Plain string }

// Options say what to do.
type Options struct {
	Pairs []Pair // at least one; copy_file_range runs between all of them
	Seed  uint64
	Ops   int
	Min   int64 // bytes below which no file shrinks; over 0 no open truncates either
	Max   int64 // bytes a file grows to; 0: DefaultMax

	// Checkpoint is called after every Every operations and after the last one, when all files are synced and equal. The
	// files stay open, and mapped.
	Checkpoint func(op int) error
	Every      int

	Replay string // the command that repeats the run, for the report of a failure
}

// Failure is a run that went wrong.
type Failure struct {
	Seed   uint64
	Op     int      // number of the operation, from 0
	Last   []string // operations, the failed one at the end
	Replay string
	Err    error
}

// Error shows all that is needed to look at it and to repeat it.
func (f *Failure) Error() string {
	return fmt.Sprintf("fsx: seed %d, operation %d: %v\nthe last operations:\n  %s\nrepeat with: %s",
		f.Seed, f.Op, f.Err, strings.Join(f.Last, "\n  "), f.Replay)
}

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }

// Stats count what was done, by the name of the operation, and files by Unmapped.
type Stats map[string]int

// Unmapped counts the files that cannot be mapped here: their mappings were left out.
const Unmapped = "files without shared mappings"

// Run does the operations. An error of them is a *Failure; what was done until then is counted.
func Run(ctx context.Context, o Options) (Stats, error) {
	if o.Max == 0 {
		o.Max = DefaultMax
	}
	if len(o.Pairs) == 0 || o.Min >= o.Max {
		return nil, errors.New("fsx: nothing to work on")
	}
	// A mapping of a file that lost its end is an error here, and not the end of the program.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	r := &run{Options: o, rng: rand.New(rand.NewPCG(o.Seed, 0)), stats: Stats{}}
	r.data = rand.NewChaCha8([32]byte{byte(o.Seed), byte(o.Seed >> 8), byte(o.Seed >> 16), byte(o.Seed >> 24)})
	defer r.close()
	op, err := r.all(ctx)
	if err != nil && ctx.Err() == nil {
		err = &Failure{Seed: o.Seed, Op: op, Last: r.log, Replay: o.Replay, Err: err}
	}
	return r.stats, err
}

// run is one run.
type run struct {
	Options
	rng   *rand.Rand
	data  *rand.ChaCha8
	pairs []*pair
	log   []string
	stats Stats
}

func (r *run) all(ctx context.Context) (op int, err error) {
	for _, p := range r.Pairs {
		fresh, err := newPair(p)
		if err != nil {
			return 0, err
		}
		r.pairs = append(r.pairs, fresh)
		if !fresh.maps {
			r.stats[Unmapped]++
		}
	}
	for op = range r.Ops {
		if err := ctx.Err(); err != nil {
			return op, err
		}
		if err := r.step(); err != nil {
			return op, err
		}
		if r.Every > 0 && (op+1)%r.Every == 0 {
			if err := r.checkpoint(op + 1); err != nil {
				return op, err
			}
		}
	}
	return r.Ops, r.checkpoint(r.Ops)
}

// step does one operation on one of the files.
func (r *run) step() error {
	p := r.pairs[r.rng.IntN(len(r.pairs))]
	n := r.rng.IntN(totalWeight)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			r.stats[o.name]++
			return o.do(r, p)
		}
	}
	return nil
}

// checkpoint syncs and compares everything, and asks whoever looks behind the mount.
func (r *run) checkpoint(op int) error {
	for _, p := range r.pairs {
		if err := errors.Join(r.sync(p, "fsync", (*os.File).Sync), r.compare(p)); err != nil {
			return err
		}
	}
	if r.Checkpoint == nil {
		return nil
	}
	r.note("checkpoint after %d operations", op)
	return r.Checkpoint(op)
}

func (r *run) note(format string, args ...any) {
	r.log = append(r.log[max(0, len(r.log)-keep+1):], fmt.Sprintf(format, args...))
}

func (r *run) close() {
	for _, p := range r.pairs {
		_ = p.close() // of files that are done with
	}
}

// The sides of a pair.
const (
	mount = iota
	plain
)

// pair is a file and its oracle, both open.
type pair struct {
	names [2]string
	files [2]*os.File
	live  [2][]byte // shared mappings that stay while other operations run; nil: none
	maps  bool      // the file at the mount can be mapped shared
	dirty bool      // something was stored through a mapping and is not synced
}

func newPair(from Pair) (*pair, error) {
	p := &pair{names: [2]string{from.Mount, from.Plain}}
	if err := p.open(0); err != nil {
		return nil, err
	}
	size, err := p.files[plain].Seek(0, io.SeekEnd)
	if err == nil && size == 0 {
		_, err = io.Copy(p.files[plain], p.files[mount])
	}
	if err == nil {
		p.maps, err = mappable(p.files[mount])
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *pair) open(flags int) error {
	for side, name := range p.names {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|flags, 0o644)
		if err != nil {
			return errors.Join(err, p.close())
		}
		p.files[side] = f
	}
	return nil
}

func (p *pair) close() error {
	err := p.unmap()
	for side, f := range p.files {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		p.files[side] = nil
	}
	return err
}

func (p *pair) unmap() error {
	var err error
	for side, m := range p.live {
		if m != nil {
			err = errors.Join(err, unix.Munmap(m))
		}
		p.live[side] = nil
	}
	return err
}

// size is that of the oracle; nothing is done that depends on the mount's own.
func (p *pair) size() (int64, error) {
	st, err := p.files[plain].Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// both does an operation on both files and wants the same outcome.
func (r *run) both(p *pair, do func(side int, f *os.File) ([]byte, error), format string, args ...any) error {
	what := fmt.Sprintf("%s: ", p.files[mount].Name()) + fmt.Sprintf(format, args...)
	r.note("%s", what)
	got, err := guarded(mount, p.files[mount], do)
	want, wantErr := guarded(plain, p.files[plain], do)
	var e, w unix.Errno
	errors.As(err, &e)
	errors.As(wantErr, &w)
	if (err == nil) != (wantErr == nil) || e != w {
		return fmt.Errorf("%s: answered %v, the plain file %v", what, err, wantErr)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s: %s", what, difference(got, want))
	}
	return nil
}

// guarded makes a fault in a mapping an error.
func guarded(side int, f *os.File, do func(int, *os.File) ([]byte, error)) (b []byte, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			b, err = nil, fmt.Errorf("fault: %v", fault)
		}
	}()
	return do(side, f)
}

// difference says where two answers part.
func difference(got, want []byte) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d bytes, the plain file has %d", len(got), len(want))
	}
	first, count := -1, 0
	for i := range got {
		if got[i] != want[i] {
			if count++; first < 0 {
				first = i
			}
		}
	}
	return fmt.Sprintf("%d of %d bytes differ, the first is number %d: %#x, and %#x in the plain file", count, len(got), first, got[first], want[first])
}
