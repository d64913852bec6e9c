package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

const (
	resyncVM, resyncDisk = "resync", "disk.raw"
	blockSize            = 4096
)

// notNow is a window for comparisons that is shut for hours: they wait for somebody who asks.
func notNow() string {
	from := time.Now().Add(6 * time.Hour)
	return fmt.Sprintf(`{from: "%s", to: "%s"}`, from.Format("15:04"), from.Add(time.Hour).Format("15:04"))
}

// resynced is a VM of one disk of random bytes that is replicated and at rest.
type resynced struct {
	*guest
	size  int64
	rng   *rand.Rand
	taken map[int64]bool // blocks that were changed, so that none is twice
}

// newResynced makes the disk; of it, every stride-th MiB holds data.
func newResynced(ctx context.Context, e *Env, r *Report, name string, size, stride int64, opts rig.Options) (*resynced, *rig.Target, func() error, error) {
	s := &resynced{size: size, rng: e.rng(6), taken: map[int64]bool{}}
	g, target, end, err := setup(ctx, e, r, name, nil, opts, func(a *rig.Rig) error {
		path := filepath.Join(a.Source, resyncVM, resyncDisk)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return s.make(path, stride)
	})
	if err != nil {
		return nil, nil, nil, err
	}
	s.guest, g.vm = g, resyncVM
	if err := s.rest(ctx); err != nil {
		return nil, nil, nil, errors.Join(err, end())
	}
	return s, target, end, nil
}

// rest returns when the replica is the newest point: nobody has anything left to send.
func (s *resynced) rest(ctx context.Context) error {
	return s.await(ctx, 10*time.Minute, "a replica at rest", func(vm rig.VM) bool {
		return vm.LastPoint != nil && vm.AppliedEpoch >= vm.LastPoint.Epoch
	})
}

func (s *resynced) make(path string, stride int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(s.size); err != nil {
		return err
	}
	for off := int64(0); off < s.size; off += stride << 20 {
		if _, err := f.WriteAt(s.random(1<<20), off); err != nil {
			return err
		}
	}
	return f.Close()
}

func (s *resynced) random(n int) []byte {
	p := make([]byte, n)
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(s.rng.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(p) // it never fails
	return p
}

// blocks draws n blocks that were not drawn before, in order.
func (s *resynced) blocks(n int) (list []int64) {
	for len(list) < n {
		if b := s.rng.Int64N(s.size / blockSize); !s.taken[b] {
			s.taken[b] = true
			list = append(list, b)
		}
	}
	slices.Sort(list)
	return list
}

// change writes random bytes over n blocks of a file.
func (s *resynced) change(path string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, b := range s.blocks(n) {
		if _, err := f.WriteAt(s.random(blockSize), b*blockSize); err != nil {
			return err
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func source(a *rig.Rig) string { return filepath.Join(a.Source, resyncVM, resyncDisk) }

// resync is the command; what it prints.
func resync(ctx context.Context, a *rig.Rig, flags ...string) (d rig.Resync, err error) {
	out, err := a.Run(ctx, append([]string{"resync", resyncVM, "--json"}, flags...)...)
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal(out, &d)
}

// carried is what all segments at the target hold, before compression: open epochs have no point that tells of them.
func carried(ctx context.Context, t *rig.Target) (n int64, err error) {
	at, end, err := blobs(ctx, t)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, end()) }()
	for item, err := range at.List(ctx, resyncVM+"/"+resyncDisk+"/log/") {
		if err != nil {
			return n, err
		}
		r, err := segment.Open(blob{ctx, at, item.Name}, item.Size)
		if err != nil {
			return n, err
		}
		for x := range r.All() {
			n += x.Range.Bytes()
		}
	}
	return n, nil
}

// blob is a page blob as a file.
type blob struct {
	ctx  context.Context
	at   *pageblob.Target
	name string
}

func (b blob) ReadAt(p []byte, off int64) (int, error) {
	return len(p), b.at.ReadPages(b.ctx, b.name, "", off, p)
}

// whole makes a point, which must be what the store holds.
func (s *resynced) whole(ctx context.Context, a *rig.Rig) error {
	if _, err := a.Sync(ctx, resyncVM); err != nil {
		return err
	}
	dir := filepath.Join(a.Dir, "export-resync")
	if err := a.Export(ctx, resyncVM, "latest", dir); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return errors.Join(sameBytes(rig.Exported(dir, resyncDisk), source(a)), a.Verify(ctx, resyncVM, "latest"))
}

func sameBytes(a, b string) error {
	return command(context.Background(), "qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", a, b)
}

// newest is the newest point.
func newest(ctx context.Context, a *rig.Rig) (string, error) {
	points, err := a.Points(ctx, resyncVM)
	if err != nil || len(points) == 0 {
		return "", errors.Join(err, errors.New("no point"))
	}
	return points[len(points)-1].ID, nil
}

// Changed changes blocks of a disk while nothing serves it; then it has a comparison paused and killed in the middle.
func Changed(ctx context.Context, e *Env, r *Report) (err error) {
	if !e.Azure {
		return errors.New("this stage reads segments from page blobs: it needs Azurite")
	}
	const changes = 1000
	s, target, end, err := newResynced(ctx, e, r, "changed", int64(e.count(2<<30, 1<<30)), 8, rig.Options{Window: notNow()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	a := s.rig
	before, err := carried(ctx, target)
	if err := errors.Join(err, a.Stop(), s.change(source(a), changes), a.Start(ctx)); err != nil {
		return err
	}
	err = s.await(ctx, time.Minute, "the VM to be marked", func(vm rig.VM) bool { return vm.State == "ResynchronizationRequired" })
	if err != nil {
		return err
	}
	began := time.Now()
	d, err := resync(ctx, a, "--now")
	if err != nil {
		return err
	}
	r.Figure("resync", "%d MiB compared, %d bytes differ, in %v", d.ComparedBytes>>20, d.DifferingBytes, time.Since(began).Round(100*time.Millisecond))
	if d.DifferingBytes != changes*blockSize {
		r.Fail("%d bytes differ, %d blocks were changed", d.DifferingBytes, changes)
	}
	r.Check(s.whole(ctx, a), "the point after a resync")
	payload, err := carried(ctx, target)
	payload -= before
	r.Figure("payload", "%d bytes, %.3f of what was changed", payload, float64(payload)/(changes*blockSize))
	if payload < changes*blockSize || payload*100 > changes*blockSize*102 {
		r.Fail("%d bytes carried for %d changed blocks", payload, changes)
	}
	return errors.Join(err, s.interrupted(ctx, target))
}

// interrupted has a comparison of the whole disk paused, and the appliance killed, with the target away.
func (s *resynced) interrupted(ctx context.Context, target *rig.Target) error {
	a := s.rig
	if target.Proxy != nil {
		target.Proxy.Set(rig.Refuse)
		defer target.Proxy.Set(rig.Pass)
	}
	asked := make(chan error, 1)
	go func() { _, err := resync(ctx, a, "--now"); asked <- err }()
	err := s.await(ctx, 2*time.Minute, "a comparison to be in the middle", func(vm rig.VM) bool {
		return vm.Resync.State == "running" && vm.Resync.ComparedBytes > s.size/16
	})
	if err != nil {
		return err
	}
	if _, err := a.Run(ctx, "pause", resyncVM); err != nil {
		return err
	}
	if err := <-asked; err != nil { // it ends when the comparison is held
		return err
	}
	var first, second int64
	err = s.await(ctx, time.Minute, "the comparison to be paused", func(vm rig.VM) bool {
		held := vm.Resync.State == "paused" && vm.Resync.ComparedBytes == first
		first = vm.Resync.ComparedBytes
		return held
	})
	if err := errors.Join(err, a.Kill(), a.Start(ctx)); err != nil {
		return err
	}
	err = s.await(ctx, time.Minute, "the comparison to be paused still", func(vm rig.VM) bool { return vm.Resync.State == "paused" })
	if err != nil {
		return err
	}
	if _, err := a.Run(ctx, "resume", resyncVM); err != nil {
		return err
	}
	err = s.await(ctx, 2*time.Minute, "the comparison to end", func(vm rig.VM) bool {
		second = vm.Resync.ComparedBytes
		return vm.Resync.State == "idle"
	})
	s.report.Figure("interrupted", "%d MiB to the pause, %d MiB after the kill, %.3f of the disk", first>>20, second>>20, float64(first+second)/float64(s.size))
	if total := first + second; total < s.size || total*100 > s.size*105 {
		s.report.Fail("%d bytes were compared of a disk of %d", total, s.size)
	}
	return err
}

// Rebuilt loses the state directory, then the machine.
func Rebuilt(ctx context.Context, e *Env, r *Report) (err error) {
	const changes = 256
	s, target, end, err := newResynced(ctx, e, r, "rebuilt", int64(e.count(256, 64))<<20, 1, rig.Options{Window: notNow()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	a := s.rig
	if err := errors.Join(a.Stop(), s.change(source(a), changes), os.RemoveAll(a.State), os.MkdirAll(a.State, 0o700)); err != nil {
		return err
	}
	before := moved(target)
	if err := errors.Join(a.Start(ctx), s.whole(ctx, a)); err != nil {
		return fmt.Errorf("without the state directory: %w", err)
	}
	s.judgeMoved(r, "state directory lost", moved(target)-before, changes)
	// What the lost machine has not applied is the other one's to apply, and no cost of its adoption.
	if err := errors.Join(s.rest(ctx), a.Stop()); err != nil {
		return err
	}
	return s.elsewhere(ctx, target, changes)
}

// elsewhere is another machine that has a copy of the disk, a bit changed.
func (s *resynced) elsewhere(ctx context.Context, target *rig.Target, changes int) (err error) {
	opts := s.rig.Options
	opts.Dir = filepath.Join(opts.Dir, "elsewhere")
	opts.Source, opts.State, opts.Mount = "", "", ""
	b, err := rig.New(opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := copyTo(source(s.rig), source(b)); err != nil {
		return err
	}
	if err := errors.Join(s.change(source(b), changes), b.Start(ctx)); err != nil {
		return err
	}
	before := moved(target)
	if _, err := b.Run(ctx, "adopt", resyncVM); err != nil {
		return err
	}
	if err := s.whole(ctx, b); err != nil {
		return fmt.Errorf("adopted elsewhere: %w", err)
	}
	s.judgeMoved(s.report, "adopted elsewhere", moved(target)-before, changes)
	return nil
}

func copyTo(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// moved is what went to a target over the network; a directory tells nothing.
func moved(t *rig.Target) int64 {
	if t.Proxy == nil {
		return 0
	}
	return t.Proxy.Sent()
}

func (s *resynced) judgeMoved(r *Report, what string, n int64, changes int) {
	most := int64(changes)*blockSize + s.size/100
	r.Figure(what, "%d KiB uploaded, at most %d, %d changed", n>>10, most>>10, changes*blockSize>>10)
	if n > most {
		r.Fail("%s: %d bytes uploaded, at most %d", what, n, most)
	}
}
