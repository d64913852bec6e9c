package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/plain"
)

// shipSize is what each round moves: some seconds' worth, for on the way there are syncs of the table.
const shipSize = 1 << 30

// shipping compares initial replication, and the shipping of an epoch of the same bytes, with plain puts of them. The
// bytes are random, so compression saves nothing and costs what it costs. Time is from the first put that arrives at
// the server to the last one answered: what a guest's network would see.
func (b *bench) shipping() (rows []row, err error) {
	size := b.size(shipSize)
	s, err := newService()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var initial, ship, yardstick []float64
	for round := range min(b.rounds, 3) {
		i, e, err := b.shipOnce(s, fmt.Sprintf("ship%d", round), size)
		if err != nil {
			return nil, err
		}
		p, err := b.plainPuts(s, size)
		if err != nil {
			return nil, err
		}
		initial, ship, yardstick = append(initial, i), append(ship, e), append(yardstick, p)
		b.progress("ship, round %d: initial %s, epoch %s, plain %s", round+1, rate(i, true), rate(e, true), rate(p, true))
	}
	detail := func(v []float64) string {
		return fmt.Sprintf("%s, plain %s", rate(median(v), true), rate(median(yardstick), true))
	}
	return []row{
		ratioRow("initial replication", "plain parallel Put Page", over(initial, yardstick), atLeast(0.9), detail(initial)),
		ratioRow("shipping an epoch", "plain parallel Put Page", over(ship, yardstick), atLeast(0.9), detail(ship)),
	}, nil
}

// plainPuts puts the bytes of the source that every round makes first.
func (b *bench) plainPuts(s *service, size int64) (float64, error) {
	f, err := os.Open(filepath.Join(b.dir, "yardstick"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := plain.Put(b.ctx, plain.Blob{Container: s.url, Account: account, Key: key, Name: "yardstick"}, f, size); err != nil {
		return 0, err
	}
	return s.pagesOf(func(name string) bool { return name == "yardstick" }).rate(), nil
}

// shipOnce brings a new disk to the server, then writes all of it anew and ships that as one epoch.
func (b *bench) shipOnce(s *service, name string, size int64) (initial, epoch float64, err error) {
	source := filepath.Join(b.dir, "yardstick")
	if err := b.random(source, size); err != nil {
		return 0, 0, err
	}
	a, err := b.prepare(name, size, rig.Options{URL: s.url + "/" + name, Key: key, SpoolLimit: 8 * size})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, a.end()) }()
	if _, err := b.command("cp", source, a.backing); err != nil {
		return 0, 0, err
	}
	if err := errors.Join(settle(a.backing), a.Start(b.ctx)); err != nil {
		return 0, 0, err
	}
	all := func(string) bool { return true }
	if _, err := a.Sync(b.ctx, vmName); err != nil {
		return 0, 0, err
	}
	initial = s.pagesOf(all).rate()
	if err := b.fill(a.mounted, 0, size); err != nil {
		return 0, 0, err
	}
	if _, err := a.Sync(b.ctx, vmName); err != nil {
		return 0, 0, err
	}
	return initial, s.pagesOf(all).rate(), nil
}

// random makes a file of random bytes, once.
func (b *bench) random(file string, size int64) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	if err := makeImage(file, size); err != nil {
		return err
	}
	return b.fill(file, 0, size)
}
