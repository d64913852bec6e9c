package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// stateDisk measures what the state directory's disk gets: bytes for each byte that changed, and syncs while a guest
// writes within the activity log's cap. The directory is a file system of its own, so both are read at its device and
// hold everything: segments, manifests, tables, Badger and the file system's own journal.
func (b *bench) stateDisk() (rows []row, err error) {
	size := b.size(1 << 30)
	v, err := b.newVolume("state", 4*size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	s, err := b.serve("stated", size, rig.Options{State: v.dir, SpoolLimit: 2 * size, Compression: `"off"`}, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if _, err := s.Sync(b.ctx, vmName); err != nil {
		return nil, err
	}
	for _, load := range []struct {
		what  string
		write func() error
	}{
		{"1 MiB sequential", func() error { return b.fill(s.mounted, 0, size/2) }},
		{"4 KiB random, each block once", func() error { return b.scatter(s.mounted, size, size/8) }},
	} {
		r, err := b.written(s, v, load.what, load.write)
		if err != nil {
			return rows, err
		}
		rows = append(rows, r)
	}
	r, err := b.syncs(s, v, size/4)
	return append(rows, r), err
}

// scatter writes n bytes in 4 KiB blocks at random places of a file, twice: the second time is rewrites, which a log
// of writes would pay for again. Blocks are not repeated within a pass.
func (b *bench) scatter(file string, size, n int64) error {
	_, err := b.command("fio", "--name=scatter", "--filename="+file, "--rw=randwrite", "--bs=4096", fmt.Sprintf("--size=%d", size),
		fmt.Sprintf("--io_size=%d", n), "--randseed=1", "--loops=2", "--ioengine=psync", "--allow_file_create=0", "--fallocate=none", "--refill_buffers", "--output-format=json")
	return err
}

// written is the row of one load: bytes at the state disk per changed byte of the epoch.
func (b *bench) written(s *store, v *volume, what string, write func() error) (row, error) {
	before, err := v.traffic(true)
	if err != nil {
		return row{}, err
	}
	if err := write(); err != nil {
		return row{}, err
	}
	if _, err := s.Sync(b.ctx, vmName); err != nil {
		return row{}, err
	}
	after, err := v.traffic(true)
	if err != nil {
		return row{}, err
	}
	points, err := s.Points(b.ctx, vmName)
	if err != nil {
		return row{}, err
	}
	changed := points[len(points)-1].Disks[0].ChangedBytes
	got := after.written - before.written
	return ratioRow("bytes at the state disk per changed byte, "+what, "the changed bytes", over([]float64{float64(got)}, []float64{float64(changed)}), atMost(1.02),
		fmt.Sprintf("%s for %s, compression off, all of the disk's traffic", mebibytes(got), mebibytes(changed))), nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// syncs is the row of flushes of the state disk while a guest writes to active regions, beyond those of an idle
// appliance (the file system commits its journal for a heartbeat now and then).
func (b *bench) syncs(s *store, v *volume, size int64) (row, error) {
	if err := b.fill(s.mounted, 0, size); err != nil {
		return row{}, err
	}
	span := 5 * b.turn
	idle, err := v.during(func() error { return b.pause(span) })
	if err != nil {
		return row{}, err
	}
	var l load
	busy, err := v.during(func() error {
		var err error
		l, err = job{name: "steady", rw: "randwrite", block: 4096, depth: 1}.run(b.ctx, &variant{file: s.mounted}, size, span)
		return err
	})
	if err != nil {
		return row{}, err
	}
	extra := max(0, busy.flushes-idle.flushes-1) // one for a commit that falls into one span and not the other
	perSecond := float64(extra) / span.Seconds()
	return row{
		what: "synced journal writes a second, steady 4 KiB random writes", against: "", value: fmt.Sprintf("%.1f", perSecond), median: perSecond, budget: budget{most: true, limit: 0},
		detail: fmt.Sprintf("flushes of the state disk in %v: %d during %.0f writes/s, %d idle", span, busy.flushes, l.iops, idle.flushes),
	}, nil
}

// during is the traffic while f runs.
func (v *volume) during(f func() error) (traffic, error) {
	before, err := v.traffic(true)
	if err != nil {
		return traffic{}, err
	}
	if err := f(); err != nil {
		return traffic{}, err
	}
	after, err := v.traffic(false)
	return traffic{written: after.written - before.written, flushes: after.flushes - before.flushes}, err
}

// pause waits, unless the run is interrupted.
func (b *bench) pause(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-t.C:
		return nil
	}
}
