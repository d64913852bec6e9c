package main

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// What the disk of the memory row measures, and the budget's two parts, in bytes.
const (
	memorySize  = 1 << 40
	memoryPerTB = 96 << 20
	memoryFixed = 192 << 20
)

// memory makes every block of a large, empty disk dirty and reads the most memory the appliance ever had. The blocks
// are marked by discards through the mount, a gigabyte each: a bit in the change set is the same bit whatever set it,
// and a terabyte of writes would take an hour. The activity log's cap is passed on the way, so the table's unknown
// entries of what was evicted are in the figure too.
func (b *bench) memory() (rows []row, err error) {
	size := b.size(memorySize)
	s, err := b.serve("memory", size, rig.Options{SpoolLimit: 1 << 30}, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if _, err := s.Sync(b.ctx, vmName); err != nil {
		return nil, err
	}
	before, err := s.Memory()
	if err != nil {
		return nil, err
	}
	if err := b.discard(s.mounted, size); err != nil {
		return nil, err
	}
	vm, err := s.VM(b.ctx, vmName)
	if err != nil {
		return nil, err
	}
	after, err := s.Memory()
	if err != nil {
		return nil, err
	}
	tib := float64(size) / (1 << 40)
	limit := memoryPerTB*tib + memoryFixed
	return []row{{
		what: fmt.Sprintf("resident memory with %v TiB dirty", tib), value: mebibytes(after), median: float64(after) / limit,
		budget:  budget{limit: 1, most: true},
		against: fmt.Sprintf("96 MiB a TiB + 192 MiB = %s", mebibytes(int64(limit))),
		detail: fmt.Sprintf("VmHWM; %s after the initial replication of the empty disk; %s dirty",
			mebibytes(before), share(vm.PendingBytes, size)),
	}}, nil
}

func share(part, whole int64) string {
	return fmt.Sprintf("%.0f %%", math.Round(100*float64(part)/float64(whole)))
}

// discard punches the whole file, in pieces as a guest's trim does.
func (b *bench) discard(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const piece = 1 << 30
	for off := int64(0); off < size && b.ctx.Err() == nil; off += piece {
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, min(piece, size-off)); err != nil {
			return fmt.Errorf("discard at %d: %w", off, err)
		}
	}
	return b.ctx.Err()
}
