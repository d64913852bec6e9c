package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/failpoint"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
	"github.com/vhdrelay/vhdrelay/journal"
	compared "github.com/vhdrelay/vhdrelay/resync"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/dir"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// road brings an appliance to some failpoints.
type road struct {
	name     string
	points   []string
	opts     rig.Options
	passages int  // most at which the point strikes; 0: the first
	quick    bool // enough for `make test`
	cuts     bool // the power is cut on the way there, whatever the deed
	whole    bool // disks are compared whole afterwards
	spoils   bool // points made on the way there are wrong by another's doing
	// bring gives the order and returns when the appliance died of it or stays at the point, or with errNeverCame.
	bring func(ctx context.Context, x *failer, o failpoint.Order) error
	begun func(ctx context.Context, x *failer) error // what else is done at the start after the crash; nil: nothing
	after func(ctx context.Context, x *failer) error // what else is to be judged; nil: nothing
}

// roads come to every failpoint but those in outOfReach.
var roads = []road{
	{name: "under load", passages: 4, quick: true, bring: underLoadAt, points: []string{
		journal.BeforeActivationCommit, journal.AfterActivationCommit, journal.BeforeDeactivationSync, journal.AfterDeactivationSync,
		journal.BeforeDeactivationApply, journal.AfterDeactivationApply, journal.BeforeEpochReserve, journal.AfterEpochReserve,
		journal.AfterPhaseSwitch, journal.AfterSettle, journal.BeforeReaderSwap, journal.AfterEpochEnd,
		spool.PointDirectoryMade, spool.PointSegmentsSynced, spool.PointDirectorySynced, spool.PointManifestDurable, spool.PointUpdated,
		spool.PointManifestUnlinked, spool.PointSegmentsRemoved,
		shipper.PointAfterSeal, shipper.PointBeforeManifest, shipper.PointAfterManifest, shipper.PointAfterTable, shipper.PointAfterUpload,
		shipper.PointBeforeRecord, shipper.PointAfterRecord, shipper.PointAfterCounted,
		shipper.PointBeforeApply, shipper.PointAfterPuts, shipper.PointBeforeSnapshot, shipper.PointAfterSnapshot,
		dir.PointBeforePublish, dir.PointAfterPublish, dir.PointBeforeReplace, dir.PointAfterReplace, dir.PointBeforePut, dir.PointBeforeData,
	}},
	{name: "writes over a slow capture", passages: 4, bring: overSlowCapture, points: []string{journal.AfterBlocksClaimed, journal.AfterBlocksSaved}},
	{name: "a slow state disk", whole: true, bring: onSlowState, points: []string{
		journal.BeforeImageMark, journal.AfterImageMark, journal.BeforeRewrite, journal.AfterRewrite, journal.AfterMarkRemoved}},
	{name: "a small activity log", passages: 3, opts: rig.Options{Env: []string{"MORTAL_REGIONS=2"}}, bring: underLoadAt, points: []string{
		journal.BeforeEvictionForget, journal.AfterEvictionForget, journal.AfterEvictionApply}},
	{name: "a start", quick: true, bring: atStart, points: []string{journal.AfterSessionStart, journal.AfterDiskUnclean}},
	{name: "a stop", quick: true, bring: atStop, points: []string{journal.BeforeCleanSets, journal.AfterCleanSets, journal.AfterCleanFlag}},
	{name: "a comparison", passages: 3, quick: true, bring: inComparison, points: []string{
		compared.PointBeforeMark, compared.PointBeforeCompared, compared.PointAfterCompared}},
	{name: "a failing state disk, in a capture", cuts: true, bring: failingAt(journal.AfterSettle), points: []string{journal.AfterMergeBack}},
	{name: "a failing state disk, at a manifest", cuts: true, bring: failingAt(spool.PointDirectorySynced), points: []string{spool.PointManifestFailed}},
	{name: "another VM", bring: beside, after: besideIsThere, points: []string{shipper.PointAfterBaseSnapshot}},
	{name: "another VM that leaves", bring: besideLeaves, after: besideIsGone, points: []string{dir.PointBeforeSidecar}},
	{name: "a spool over its quota", opts: rig.Options{SpoolLimit: 256 << 20, Compression: `"off"`}, bring: overQuota, points: []string{
		spool.PointIntentDurable, shipper.PointAfterIntent, shipper.PointAfterForget, spool.PointGivenUp}},
	{name: "a state directory that was lost", whole: true, bring: withoutState, points: []string{compared.PointBeforeMatched}},
	{name: "a damaged replica", spoils: true, bring: overDamage, begun: mended, points: []string{compared.PointBeforeForget, compared.PointAfterForget}},
	{name: "points that are pruned", opts: rig.Options{Dense: "0s"}, bring: afterApply, points: []string{retention.PointRecordDeleted}},
}

// outOfReach are failpoints that no road leads to, with the reason.
var outOfReach = map[string]string{
	retention.PointBlobDeleted: "it comes an hour after its record was deleted",
}

// underLoadAt comes to what happens while a guest writes and points are made.
func underLoadAt(ctx context.Context, x *failer, o failpoint.Order) error {
	x.work(ctx)
	if err := x.rig.Order(o); err != nil {
		return err
	}
	return x.until(ctx, x.move)
}

// overSlowCapture gives a guest time to write to what is to be captured.
func overSlowCapture(ctx context.Context, x *failer, o failpoint.Order) error {
	if err := x.rig.Order(failpoint.Order{Point: journal.AfterSettle, Do: failpoint.Stall, For: 200 * time.Millisecond}); err != nil {
		return err
	}
	return underLoadAt(ctx, x, o)
}

// onSlowState has an activation take more than the second that a guest waits for one, then lets the journal recover.
func onSlowState(ctx context.Context, x *failer, o failpoint.Order) error {
	x.work(ctx)
	slow := failpoint.Order{Point: journal.BeforeActivationCommit, Do: failpoint.Stall, For: journal.DefaultActivationTimeout * 3 / 2}
	if err := errors.Join(x.rig.Order(o), x.rig.Order(slow)); err != nil {
		return err
	}
	turns := 0
	return x.until(ctx, func() error {
		if turns++; turns%30 == 10 {
			return x.rig.Order(failpoint.Order{Point: slow.Point}) // quick again
		} else if turns%30 == 0 {
			return x.rig.Order(slow)
		}
		return x.move()
	})
}

// afterApply has the replica catch up, so that there is something to prune at the next start.
func afterApply(ctx context.Context, x *failer, o failpoint.Order) error {
	if err := x.applied(ctx); err != nil {
		return err
	}
	return atStart(ctx, x, o)
}

// applied is load until the replica has caught up with it once.
func (x *failer) applied(ctx context.Context) error {
	before, err := x.rig.VM(ctx, x.vm)
	if err != nil {
		return err
	}
	x.work(ctx)
	err = x.await(ctx, time.Minute, "an apply", func(vm rig.VM) bool {
		return vm.AppliedEpoch > before.AppliedEpoch && vm.AppliedEpoch > before.LastPoint.Epoch+1
	})
	err = errors.Join(err, x.asking.stop(), x.stop())
	x.asking = nil
	return err
}

// overDamage has somebody write to the replica where no load writes. The appliance notices with the next apply, and looks.
func overDamage(ctx context.Context, x *failer, o failpoint.Order) error {
	x.work(ctx)
	if err := x.rig.Order(o); err != nil {
		return err
	}
	at, err := dir.Open(filepath.Join(x.rig.Dir, "replicas"), dir.Options{})
	if err != nil {
		return err
	}
	page, name := x.content(stamp.BlockSize), x.vm+"/wide.raw/replica.vhd"
	err = errors.Join(at.BreakLease(ctx, name), at.PutPages(ctx, name, (4<<10+x.rng.Int64N(8<<10))*stamp.BlockSize, page, checksum.Of(page), target.Unguarded), at.Close())
	if err != nil {
		return err
	}
	return x.until(ctx, x.move)
}

// while runs a command that the crash interrupts.
func (x *failer) while(ctx context.Context, args ...string) error {
	asking, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	asked.Go(func() { _, _ = x.rig.Run(asking, args...) }) // that it is interrupted is its usual error
	err := x.until(ctx, x.move)
	cancel()
	asked.Wait()
	return err
}

// mended has the appliance look again, to the end: a point of before is what the damaged replica makes it.
func mended(ctx context.Context, x *failer) error {
	return x.rig.Await(ctx, "the damage to be found", func() (bool, error) {
		_, err := x.rig.Run(ctx, "resync", x.vm, "--deep", "--now")
		if failed, ok := errors.AsType[*rig.CommandError](err); ok && failed.Code == rig.ExitRefused {
			return false, nil // the interrupted one goes on
		}
		if err != nil && !differs(err) {
			return false, err
		}
		return true, nil
	})
}

// withoutState loses the state directory.
func withoutState(ctx context.Context, x *failer, o failpoint.Order) error {
	if err := x.rested(ctx); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(x.rig.State), os.Mkdir(x.rig.State, 0o700)); err != nil {
		return err
	}
	return x.launched(ctx, o)
}

// atStart stops the appliance under load and starts it again.
func atStart(ctx context.Context, x *failer, o failpoint.Order) error {
	if err := x.rested(ctx); err != nil {
		return err
	}
	return x.launched(ctx, o)
}

// launched starts the appliance with an order.
func (x *failer) launched(ctx context.Context, o failpoint.Order) error {
	x.rig.Orders = []failpoint.Order{o}
	if err := x.rig.Launch(); err != nil {
		return err
	}
	return x.until(ctx, func() error { return nil })
}

// rested is load, and a clean stop after it.
func (x *failer) rested(ctx context.Context) error {
	if x.rig.Pid() == 0 {
		return nil
	}
	x.work(ctx)
	if err := x.pause(ctx, time.Second); err != nil {
		return err
	}
	err := x.asking.stop()
	for _, a := range x.asking.acked {
		x.told[a.id] = true
	}
	x.asking = nil
	return errors.Join(err, x.stop(), x.rig.Stop())
}

// atStop stops the appliance.
func atStop(ctx context.Context, x *failer, o failpoint.Order) error {
	x.work(ctx)
	if err := x.pause(ctx, time.Second); err != nil {
		return err
	}
	_ = x.asking.stop() // one is interrupted
	if err := errors.Join(x.rig.Order(o), x.stop()); err != nil {
		return err
	}
	if err := unix.Kill(x.rig.Pid(), unix.SIGTERM); err != nil {
		return err
	}
	return x.until(ctx, func() error { return nil })
}

// inComparison kills the appliance under load, so that the next start has something to compare.
func inComparison(ctx context.Context, x *failer, o failpoint.Order) error {
	x.work(ctx)
	if err := x.pause(ctx, time.Second); err != nil {
		return err
	}
	told, err := x.crash(ctx, false)
	if err != nil {
		return err
	}
	for _, a := range told {
		x.told[a.id] = true
	}
	return x.launched(ctx, o)
}

// failingAt takes the state's disk away while the appliance is at a point before the one that is meant.
func failingAt(before string) func(context.Context, *failer, failpoint.Order) error {
	return func(ctx context.Context, x *failer, o failpoint.Order) error {
		stall := failpoint.Order{Point: before, Do: failpoint.Stall, For: 500 * time.Millisecond}
		if err := errors.Join(x.rig.Stop(), x.host.Unmount(), x.host.Mount(ctx)); err != nil {
			return err
		}
		x.rig.Orders = []failpoint.Order{stall, o}
		if err := x.rig.Start(ctx); err != nil {
			return err
		}
		x.work(ctx)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for !slices.Contains(x.rig.Passed(), before) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
		if err := x.powerOff(); err != nil {
			return err
		}
		return x.until(ctx, func() error { return nil })
	}
}

const extraDisk = "disk.raw"

func (x *failer) extraVM() string { return fmt.Sprintf("beside%d", x.extra) }

// beside makes a disk of another VM.
func beside(ctx context.Context, x *failer, o failpoint.Order) error {
	x.extra++
	x.work(ctx)
	if err := x.rig.Order(o); err != nil {
		return err
	}
	at := filepath.Join(x.rig.Mount, x.extraVM())
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(at, extraDisk), x.content(8<<20), 0o600); err != nil {
		return err
	}
	return x.until(ctx, x.move)
}

func (x *failer) content(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(x.rng.Uint32())
	}
	return p
}

// besideIsThere wants a point of the other VM that equals its disk.
func besideIsThere(ctx context.Context, x *failer) error {
	result, err := x.rig.Sync(ctx, x.extraVM())
	if err != nil {
		return err
	}
	to := filepath.Join(x.rig.Dir, "beside")
	if err := x.rig.Export(ctx, x.extraVM(), result.Point, to); err != nil {
		return err
	}
	return command(ctx, "cmp", rig.Exported(to, extraDisk), filepath.Join(x.rig.Source, x.extraVM(), extraDisk))
}

// besideLeaves makes another VM, with a point, and has it leave with all it has at the target.
func besideLeaves(ctx context.Context, x *failer, o failpoint.Order) error {
	x.extra++
	at := filepath.Join(x.rig.Mount, x.extraVM())
	if err := errors.Join(os.Mkdir(at, 0o700), os.WriteFile(filepath.Join(at, extraDisk), x.content(4<<20), 0o600)); err != nil {
		return err
	}
	if err := besideIsThere(ctx, x); err != nil {
		return err
	}
	x.work(ctx)
	if err := x.rig.Order(o); err != nil {
		return err
	}
	return x.while(ctx, "unprotect", x.extraVM(), "--delete-replica", "--yes")
}

// besideIsGone wants the target to have nothing of the other VM any more, without being asked again.
func besideIsGone(ctx context.Context, x *failer) error {
	return x.rig.Await(ctx, x.extraVM()+" to leave the target", func() (bool, error) {
		_, err := os.Stat(filepath.Join(x.rig.Dir, "replicas", x.extraVM(), "vm.json"))
		return errors.Is(err, os.ErrNotExist), nil
	})
}

// overQuota fills the spool while shipping is slow, and then shrinks what it may take.
func overQuota(ctx context.Context, x *failer, o failpoint.Order) error {
	const small = 16 << 20 // the least that the configuration takes
	if err := x.quota(256 << 20); err != nil {
		return err
	}
	slow := failpoint.Order{Point: shipper.PointAfterUpload, Do: failpoint.Stall, For: 8 * time.Second}
	if err := errors.Join(x.rig.Order(slow), x.rig.Order(o)); err != nil {
		return err
	}
	x.load.Modes = nil
	x.start(ctx)
	shrunk := false
	return x.until(ctx, func() error {
		asking, cancel := context.WithTimeout(ctx, 2*time.Second) // a point that stays is not to keep it
		defer cancel()
		_, _ = x.rig.Run(asking, "sync", x.vm) // seals; it may be interrupted
		vm, err := x.rig.VM(asking, x.vm)
		if err != nil || shrunk || vm.SpooledBytes < 5*small/2 {
			return nil // it is dying, or not yet
		}
		shrunk = true
		return x.quota(small)
	})
}

// quota sets the limit of the spool.
func (x *failer) quota(bytes int64) error {
	x.rig.SpoolLimit = bytes
	return errors.Join(x.rig.Configure(), unix.Kill(x.rig.Pid(), unix.SIGHUP))
}
