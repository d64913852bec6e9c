package stage

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// fioVM is a VM of one disk on which fio writes, reads back and compares.
const fioVM, fioDisk, fioSize = "fio", "fio.raw", 96 << 20

func newFio(ctx context.Context, appliance *rig.Rig) error {
	return createDisk(ctx, filepath.Join(appliance.Source, fioVM, fioDisk), fioSize)
}

// fio runs for d; an error of the mount or a byte that reads back differently is its error.
func fio(ctx context.Context, appliance *rig.Rig, d time.Duration) error {
	return command(ctx, "fio", "--name=verify", "--filename="+filepath.Join(appliance.Mount, fioVM, fioDisk),
		"--size="+strconv.Itoa(fioSize), "--rw=randwrite", "--bsrange=4k-256k", "--blockalign=4k", "--direct=1", "--ioengine=psync", "--fsync=32",
		"--rate=4m,4m", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--verify_state_save=0", "--time_based",
		fmt.Sprintf("--runtime=%d", int(d.Seconds())), "--output-format=terse")
}

// checkFio makes a point at rest, which must be what the store holds, and proves the newest points against their records.
func checkFio(ctx context.Context, appliance *rig.Rig) error {
	result, err := appliance.Sync(ctx, fioVM)
	if err != nil {
		return err
	}
	dir := filepath.Join(appliance.Dir, "export-fio")
	if err := appliance.Export(ctx, fioVM, result.Point, dir); err != nil {
		return err
	}
	if err := command(ctx, "cmp", rig.Exported(dir, fioDisk), filepath.Join(appliance.Source, fioVM, fioDisk)); err != nil {
		return err
	}
	points, err := appliance.Points(ctx, fioVM)
	if err != nil {
		return err
	}
	for _, p := range sample(points, mostPoints/2) {
		if err := appliance.Verify(ctx, fioVM, p.ID); err != nil {
			return err
		}
	}
	return nil
}
