package appliance

import (
	"context"
	"errors"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// deep is target × table: nothing if the replica is as we left it, else a comparison
// of its newest snapshot, which goes on where an earlier one was interrupted.
func (r *resyncer) deep(ctx context.Context, t task) error {
	name := t.a.disk.Name()
	id, isDisk := r.m.pipeline.DiskOf(t.a.disk.ID())
	if !isDisk {
		return nil
	}
	table, _, ready := r.m.pipeline.Table(id)
	if !ready {
		return nil
	}
	same, err := r.m.pipeline.Unchanged(ctx, id)
	if err != nil {
		return err
	}
	if same {
		r.m.app.log.Info("the replica is as it was left", "vm", r.m.name, "disk", name, "reason", t.reason)
		r.start(idle{}, func() control.Resync { return shown(resync.Progress{}, resync.Cost{Sums: 1}, t) })
		return r.wishes.compared(name, r.m.app.now())
	}
	from := r.wishes.get().Deep[name]
	w, err := r.m.pipeline.OpenView(ctx, id, from.Snapshot)
	if errors.Is(err, shipper.ErrUnderWay) {
		return nil // the pipeline moves when the round is over
	}
	if err != nil {
		return err
	}
	if w.Snapshot() != from.Snapshot {
		from = deepWish{Reason: from.Reason, Snapshot: w.Snapshot(), Found: from.Found} // the other one is gone: from the start; what was found was found
	}
	d := resync.NewDeep(resync.DeepDeps{Replica: w, Table: table,
		Forget: func(rs ...extent.Range[extent.DiskBlock]) error {
			from.Found += extent.Of(rs...).Blocks()
			if err := r.wishes.keep(name, from); err != nil { // first: once they are unknown nobody finds them again
				return err
			}
			return r.m.pipeline.ForgetBlocks(id, rs...)
		},
		Passed: func(at extent.DiskBlock) error {
			from.At = at
			return r.wishes.passed(name, from)
		}}, resync.Options{Reason: t.reason, Yield: r.m.store.yield, Hook: r.m.app.hook})
	r.start(d, func() control.Resync { return shown(d.Report().Progress, d.Report().Cost, t) })
	report, err := d.Run(ctx, from.At)
	after := context.WithoutCancel(ctx)
	if errors.Is(err, target.ErrNotFound) { // pruned: the newest one from the start
		from = deepWish{Reason: from.Reason, Found: from.Found}
		return errors.Join(r.wishes.passed(name, from), w.Close(after))
	}
	if err == nil {
		err = r.m.pipeline.EndDeep(ctx, w, from.Found, true)
	}
	if err = errors.Join(err, w.Close(after)); err != nil {
		return errors.Join(err, r.wishes.keep(name, from))
	}
	r.m.app.log.Info("compared the target with the checksum table", "vm", r.m.name, "disk", name, "reason", t.reason, "point", w.Point().String(),
		"compared_bytes", report.Compared, "differing_bytes", report.Differing, "downloaded_bytes", report.Downloaded, "requests", report.Sums+report.Reads)
	r.m.pipeline.SealSoon()
	return r.wishes.compared(name, r.m.app.now())
}

// idle is a comparison that was over before it began.
type idle struct{}

func (idle) Pause() {}

func (idle) Resume() {}

// match is source × target: a table that knows nothing is found out.
func (r *resyncer) match(ctx context.Context, t task) error {
	id, isDisk := r.m.pipeline.DiskOf(t.a.disk.ID())
	if !isDisk {
		return nil
	}
	table, layout, ready := r.m.pipeline.MatchTable(id)
	if !ready {
		return nil
	}
	w, err := r.m.pipeline.OpenView(ctx, id, "")
	if err != nil {
		return err
	}
	m := resync.NewMatch(resync.MatchDeps{Source: t.a.file, Layout: layout, Table: table, Replica: w,
		Passed: func(at extent.DiskBlock) error { return r.m.pipeline.NoteMatched(id, at) }}, resync.Options{Reason: t.reason, Yield: r.m.store.yield, Hook: r.m.app.hook})
	r.start(m, func() control.Resync { return shown(m.Report().Progress, m.Report().Cost, t) })
	report, err := m.Run(ctx, r.m.pipeline.MatchedTo(id))
	if err = errors.Join(err, w.Close(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	r.m.app.log.Info("compared the source with the target", "vm", r.m.name, "disk", t.a.disk.Name(), "reason", t.reason, "compared_bytes", report.Compared,
		"differing_bytes", report.Differing, "downloaded_bytes", report.Downloaded, "requests", report.Sums+report.Reads)
	return r.m.pipeline.EndMatch(id)
}
