package stage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/fsx"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// fsxVM has two disks, and a file that is none.
const fsxVM = "fsx"

var fsxDisks = []string{"a.raw", "b.raw"}

const (
	fsxLeast = 64 << 10 // bytes; a disk of no size is no disk
	fsxMost  = 512 << 10
)

// Fsx does a million random operations at the mount and on plain files, which must stay equal; at intervals a point is
// asked for, and its export must be equal as well: every change was tracked, by the real journal.
func Fsx(ctx context.Context, e *Env, r *Report) error {
	return fsxRun(ctx, e, r, e.count(1_000_000, 20_000), e.count(25_000, 4_000))
}

// FsxSmall is Fsx for a test.
func FsxSmall(ctx context.Context, e *Env, r *Report) error { return fsxRun(ctx, e, r, 6_000, 1_500) }

func fsxRun(ctx context.Context, e *Env, r *Report, ops, every int) (err error) {
	appliance, _, end, err := e.appliance(ctx, "fsx", rig.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	for _, name := range fsxDisks {
		if err := createDisk(ctx, filepath.Join(appliance.Source, fsxVM, name), fsxLeast); err != nil {
			return err
		}
	}
	if err := appliance.Start(ctx); err != nil {
		return err
	}
	x := &exerciser{env: e, rig: appliance, plain: filepath.Join(appliance.Dir, "plain")}
	return x.run(ctx, r, ops, every)
}

// exerciser runs fsx against an appliance.
type exerciser struct {
	env    *Env
	rig    *rig.Rig
	plain  string // directory of the plain files
	points int
}

func (x *exerciser) run(ctx context.Context, r *Report, ops, every int) error {
	if err := command(ctx, "mkdir", "-p", x.plain); err != nil {
		return err
	}
	o := fsx.Options{
		Seed: x.env.Seed, Ops: ops, Every: every, Min: fsxLeast, Max: fsxMost,
		Checkpoint: func(op int) error { return x.point(ctx, op) },
		Replay:     fmt.Sprintf("go run ./appliance/e2e/acceptance -run '^fsx$' -again -seed %d -short=%v", x.env.Seed, x.env.Short),
	}
	for _, name := range append(slices.Clone(fsxDisks), "note") {
		o.Pairs = append(o.Pairs, fsx.Pair{Mount: filepath.Join(x.rig.Mount, fsxVM, name), Plain: filepath.Join(x.plain, name)})
	}
	began := time.Now()
	stats, err := fsx.Run(ctx, o)
	r.Figure("operations", "%d in %v, %d points equal to the plain files", ops, time.Since(began).Round(time.Second), x.points)
	r.Figure("of them", "%s", strings.TrimPrefix(fmt.Sprint(stats), "map"))
	return err
}

// point makes one and compares its export with the plain files.
func (x *exerciser) point(ctx context.Context, op int) error {
	result, err := x.rig.Sync(ctx, fsxVM)
	if err != nil {
		return err
	}
	dir := filepath.Join(x.rig.Dir, "export")
	if err := x.rig.Export(ctx, fsxVM, result.Point, dir); err != nil {
		return err
	}
	for _, name := range fsxDisks {
		if err := command(ctx, "cmp", rig.Exported(dir, name), filepath.Join(x.plain, name)); err != nil {
			return fmt.Errorf("point %s is not what the files are: %w", result.Point, err)
		}
	}
	x.points++
	x.env.say("%d operations, point %s is equal", op, result.Point)
	return nil
}
