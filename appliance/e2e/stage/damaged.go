package stage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// chunkSize is what a comparison of the replica reads back at a time.
const chunkSize = 1 << 20

// Damaged has somebody write to the replica behind our back.
func Damaged(ctx context.Context, e *Env, r *Report) (err error) {
	if !e.Azure {
		return errors.New("this stage damages page blobs: it needs Azurite")
	}
	const damages = 100
	s, t, end, err := newResynced(ctx, e, r, "damaged", int64(e.count(256, 64))<<20, 1, rig.Options{Window: notNow()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	a := s.rig
	d, err := resync(ctx, a, "--deep", "--now")
	if err != nil {
		return err
	}
	r.Figure("nothing damaged", "%d requests, %d bytes read back", d.Requests, d.DownloadedBytes)
	if d.Requests != 1 || d.DownloadedBytes != 0 {
		r.Fail("an untouched replica took %d requests", d.Requests)
	}
	list := s.blocks(damages)
	if err := errors.Join(damage(ctx, t, list), s.fold(ctx)); err != nil {
		return err
	}
	bad, err := newest(ctx, a)
	if err != nil {
		return err
	}
	if err := a.Verify(ctx, resyncVM, bad); !differs(err) {
		r.Fail("verify of a damaged replica: %v, want exit %d", err, rig.ExitDifferences)
	}
	r.Check(a.Verify(ctx, resyncVM, "latest"), "latest, which avoids the damaged point")
	if d, err = resync(ctx, a, "--deep", "--now"); err != nil {
		return err
	}
	s.judgeDamage(r, d, list)
	r.Check(s.whole(ctx, a), "the point that repairs")
	return nil
}

func differs(err error) bool {
	failed, ok := errors.AsType[*rig.CommandError](err)
	return ok && failed.Code == rig.ExitDifferences
}

func (s *resynced) judgeDamage(r *Report, d rig.Resync, list []int64) {
	chunks := map[int64]bool{}
	for _, b := range list {
		chunks[b*blockSize/chunkSize] = true
	}
	most := 2 * int64(len(chunks)) * chunkSize // each is looked at once more before it is flagged
	r.Figure("damaged", "%d bytes differ in %d chunks, %d requests, %d KiB read back", d.DifferingBytes, len(chunks), d.Requests, d.DownloadedBytes>>10)
	if d.DifferingBytes != int64(len(list))*blockSize {
		r.Fail("%d bytes found, %d blocks were damaged", d.DifferingBytes, len(list))
	}
	if d.DownloadedBytes > most {
		r.Fail("%d bytes read back for %d chunks", d.DownloadedBytes, len(chunks))
	}
}

// blobs is the target as the appliance opens it; the returned function ends that.
func blobs(ctx context.Context, t *rig.Target) (*pageblob.Target, func() error, error) {
	dir, err := os.MkdirTemp("", "key")
	if err != nil {
		return nil, nil, err
	}
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(t.Key), 0o600); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	at, err := pageblob.Open(ctx, pageblob.Options{URL: t.URL, Credential: pageblob.Credential{Type: "shared_key", File: key}})
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return at, func() error { return errors.Join(at.Close(), os.RemoveAll(dir)) }, nil
}

// damage writes to blocks of the replica as somebody does who does not care for leases.
func damage(ctx context.Context, t *rig.Target, list []int64) (err error) {
	at, end, err := blobs(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	name := resyncVM + "/" + resyncDisk + "/replica.vhd"
	if err := at.BreakLease(ctx, name); err != nil {
		return err
	}
	page := make([]byte, blockSize)
	for _, b := range list {
		if err := at.ReadPages(ctx, name, "", b*blockSize, page); err != nil {
			return err
		}
		page[b%blockSize] ^= 0x10
		if err := at.PutPages(ctx, name, b*blockSize, page, checksum.Of(page), target.Unguarded); err != nil {
			return err
		}
	}
	return nil
}

// fold has the guest change a block, and waits until the replica has a snapshot with it.
func (s *resynced) fold(ctx context.Context) error {
	if err := s.change(filepath.Join(s.rig.Mount, resyncVM, resyncDisk), 1); err != nil {
		return err
	}
	if _, err := s.rig.Sync(ctx, resyncVM); err != nil {
		return err
	}
	return s.await(ctx, 2*time.Minute, "the replica to be folded", func(vm rig.VM) bool {
		return vm.LastPoint != nil && vm.AppliedEpoch >= vm.LastPoint.Epoch
	})
}

// overrunQuota is the smallest spool that the configuration takes.
const overrunQuota = 16 << 20

// Overrun changes three times what the spool holds while a comparison is to be done and runs.
func Overrun(ctx context.Context, e *Env, r *Report) (err error) {
	s, _, end, err := newResynced(ctx, e, r, "overrun", 256<<20, 1, rig.Options{Window: notNow(), SpoolLimit: overrunQuota, Compression: `"off"`})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	a := s.rig
	old, err := newest(ctx, a)
	if err != nil {
		return err
	}
	first := filepath.Join(a.Dir, "first.raw")
	if err := copyTo(source(a), first); err != nil {
		return err
	}
	if _, err := resync(ctx, a); err != nil { // it waits for the window
		return err
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	wrote, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.overwrite(load, 3*overrunQuota, wrote) }()
	select {
	case <-wrote:
	case err := <-ended:
		return err
	}
	d, err := resync(ctx, a, "--now")
	stop()
	if err := errors.Join(err, <-ended); err != nil {
		return err
	}
	r.Figure("overrun", "%d MiB written over a quota of %d MiB, %d MiB compared, %d MiB differ", 3*overrunQuota>>20, overrunQuota>>20, d.ComparedBytes>>20, d.DifferingBytes>>20)
	r.Check(s.whole(ctx, a), "the point after the load")
	if err := s.await(ctx, 2*time.Minute, "the VM to be well", func(vm rig.VM) bool { return vm.State == "Replicating" }); err != nil {
		return err
	}
	r.Check(s.calm(ctx), "after the resync")
	dir := filepath.Join(a.Dir, "export-old")
	if err := a.Export(ctx, resyncVM, old, dir); err != nil {
		return err
	}
	r.Check(sameBytes(rig.Exported(dir, resyncDisk), first), "the point %s from before", old)
	return nil
}

// overwrite writes at the mount until ctx ends; closes wrote after n bytes.
func (s *resynced) overwrite(ctx context.Context, n int64, wrote chan<- struct{}) error {
	f, err := os.OpenFile(filepath.Join(s.rig.Mount, resyncVM, resyncDisk), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(s.env.Seed, 7))
	p := make([]byte, 64<<10)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for done := int64(0); ctx.Err() == nil; done += int64(len(p)) {
		p[rng.IntN(len(p))]++
		if _, err := f.WriteAt(p, rng.Int64N(s.size/int64(len(p)))*int64(len(p))); err != nil {
			return fmt.Errorf("a guest's write: %w", err)
		}
		if done < n && done+int64(len(p)) >= n {
			close(wrote)
		}
	}
	return f.Close()
}

// calm watches for three intervals that nothing is marked or compared again.
func (s *resynced) calm(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.Now().Add(3 * s.rig.Interval); time.Now().Before(end); {
		vm, err := s.rig.VM(ctx, resyncVM)
		if err != nil {
			return err
		}
		if vm.State != "Replicating" || vm.Resync.State != "idle" {
			return fmt.Errorf("state %s, resync %s", vm.State, vm.Resync.State)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}
