package stage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/fsx"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// Handover ends the process that serves two hundred times with SIGKILL at random moments, and after every nine of them once in
// an orderly way, while somebody keeps the connection of its mount; halfway an upgrade comes, and an attempt to go back. No guest
// sees an error, and every point is admissible.
func Handover(ctx context.Context, e *Env, r *Report) error {
	return handover(ctx, e, r, e.count(222, 20), 10)
}

// keptFor bounds what the target takes in the half hour that two hundred ends need: without pruning it was 36 GB.
const keptFor = "4m"

// HandoverSmall is Handover for a test.
func HandoverSmall(ctx context.Context, e *Env, r *Report) error { return handover(ctx, e, r, 4, 2) }

// handover ends n processes, one of so many in an orderly way.
func handover(ctx context.Context, e *Env, r *Report, n, orderly int) (err error) {
	if e.Ends > 0 {
		n = e.Ends
	}
	var x *linux
	g, _, end, err := setup(ctx, e, r, "handover", standardDisks, rig.Options{Keeper: true, Dense: keptFor},
		func(a *rig.Rig) error { return newFio(ctx, a) },
		func(a *rig.Rig) error { return newFsxDisks(ctx, a) },
		func(a *rig.Rig) (err error) { x, err = newLinux(ctx, e, a); return err })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	g.load.Rate = 6_000_000
	h := &heir{guest: g, rng: e.rng(21), orderly: orderly, linux: x}
	if h.next, err = rig.BuildNext(ctx, g.rig.Dir); err != nil {
		return err
	}
	if err := h.underLoads(ctx, x, n); err != nil {
		return err
	}
	r.Figure("ends", "%d of the process, %d by SIGKILL, longest until the next one answers %v", n, n-n/orderly, h.longest.Round(time.Millisecond))
	r.Figure("load", "%+v", x.told())
	r.Check(g.atRest(ctx), "at rest")
	r.Check(checkFio(ctx, g.rig), "VM %s", fioVM)
	return errors.Join(g.checkAll(ctx, mostPoints), x.checkAll(ctx, r), g.rig.Stop())
}

// heir ends processes and watches the next one.
type heir struct {
	*guest
	rng     *rand.Rand
	linux   *linux
	orderly int    // one end in so many is a SIGTERM, as in an upgrade
	next    string // the later release
	longest time.Duration
}

// underLoads runs every load while processes end and follow each other; an error of any is a failure.
func (h *heir) underLoads(ctx context.Context, x *linux, n int) (err error) {
	h.guest.start(ctx)
	if err := x.start(ctx); err != nil {
		return errors.Join(err, h.guest.stop())
	}
	loads, cancel := context.WithCancel(ctx)
	defer cancel()
	fioDone, fsxDone := make(chan error, 1), make(chan error, 1)
	go func() { fioDone <- deepFio(loads, h.rig) }()
	go func() { fsxDone <- fsxUntil(loads, h) }()
	err = h.replicated(ctx)
	for i := 0; i < n && err == nil; i++ {
		if i == n/2 {
			if err = h.upgrade(ctx); err != nil {
				err = fmt.Errorf("upgrade: %w", err)
				break
			}
		}
		if err = h.round(ctx, i); err != nil {
			err = fmt.Errorf("end %d: %w", i+1, err)
		}
	}
	h.report.Check(h.guest.stop(), "the stamped load")
	h.report.Check(x.stop(), "database and tree")
	cancel()
	h.report.Check(<-fsxDone, "fsx")
	h.report.Check(stoppedFio(<-fioDone), "fio")
	return err
}

// round waits for a moment of no meaning, ends the process, and waits until the next one has taken over.
func (h *heir) round(ctx context.Context, i int) error {
	if err := h.pause(ctx, time.Duration(h.rng.Int64N(int64(1500*time.Millisecond)))); err != nil {
		return fmt.Errorf("the load fails: %w", err)
	}
	pid, sig := h.rig.Pid(), unix.SIGKILL
	if i%h.orderly == h.orderly-1 {
		sig = unix.SIGTERM
	}
	began := time.Now()
	if err := h.rig.Signal(sig); err != nil {
		return err
	}
	err := h.takenOver(ctx, pid, began)
	h.env.say("%v %d: the next process answers after %v", sig, i+1, time.Since(began).Round(time.Millisecond))
	if err == nil && i%checkEvery == checkEvery-1 {
		h.judge(ctx, fmt.Sprintf("end %d", i+1))
	}
	return err
}

// judge asks for points of both machines and judges them.
func (h *heir) judge(ctx context.Context, after string) {
	_, err := h.sync(ctx)
	h.report.Check(err, "after %s", after)
	h.report.Check(h.linux.sync(ctx), "VM %s after %s", h.linux.vm, after)
}

// takenOver waits until another process than pid answers.
func (h *heir) takenOver(ctx context.Context, pid int, began time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := h.rig.Followed(ctx, pid)
	h.longest = max(h.longest, time.Since(began))
	return err
}

// deepFio writes and verifies with 32 requests under way until ctx ends.
func deepFio(ctx context.Context, appliance *rig.Rig) error {
	return command(ctx, "fio", "--name=verify", "--filename="+filepath.Join(appliance.Mount, fioVM, fioDisk),
		"--size="+strconv.Itoa(fioSize), "--rw=randwrite", "--bsrange=4k-256k", "--blockalign=4k", "--direct=1", "--ioengine=libaio", "--iodepth=32",
		"--rate=4m,4m", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--verify_state_save=0", "--time_based",
		"--runtime=7200", "--output-format=terse", "--thread") // one process, so that it ends when it is killed
}

// stoppedFio is nil for a fio that was killed because its time was over.
func stoppedFio(err error) error {
	if err != nil && strings.Contains(fmt.Sprint(err), "signal: killed") {
		return nil
	}
	return err
}

func newFsxDisks(ctx context.Context, appliance *rig.Rig) error {
	for _, name := range fsxDisks {
		if err := createDisk(ctx, filepath.Join(appliance.Source, fsxVM, name), fsxLeast); err != nil {
			return err
		}
	}
	return nil
}

// fsxUntil does random operations at the mount and on plain files, which must stay equal, until ctx ends.
func fsxUntil(ctx context.Context, h *heir) error {
	plain := filepath.Join(h.rig.Dir, "plain")
	if err := command(ctx, "mkdir", "-p", plain); err != nil {
		return err
	}
	o := fsx.Options{Seed: h.env.Seed, Ops: 1 << 30, Every: 200, Min: fsxLeast, Max: fsxMost, Replay: "the moments of the ends do not repeat",
		Checkpoint: func(int) error { return context.Cause(ctx) }}
	for _, name := range append(fsxDisks[:len(fsxDisks):len(fsxDisks)], "note") {
		o.Pairs = append(o.Pairs, fsx.Pair{Mount: filepath.Join(h.rig.Mount, fsxVM, name), Plain: filepath.Join(plain, name)})
	}
	_, err := fsx.Run(ctx, o)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
