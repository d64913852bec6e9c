package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// The steps of enabling protection (BEHAVIOUR, Enable protection).
const (
	stepPrerequisites = "prerequisites"
	stepRelationship  = "relationship"
	stepInitial       = "initial replication"
	stepFinalize      = "finalize"
)

// The steps of a resync.
const (
	stepCompare = "compare"
	stepRepair  = "repair"
)

// protectLook is how often a job is looked after besides when the pipeline moves.
const protectLook = 5 * time.Second

// proofRetry is how long a first point that could not be read waits for its next proof.
const proofRetry = time.Minute

// protection follows a VM from its first byte to a point that was proven readable, as a job. It does nothing of
// the work: it says where the pipeline is.
type protection struct {
	m        *machine
	complete map[string]bool // disks by id that were complete at the last look, nil before the first
	proof    struct {        // of the run loop alone
		next  time.Time
		point catalog.PointID // which was the newest at the last proof
	}
}

// watchJobs keeps the jobs of the VM up to date until ctx ends.
func (m *machine) watchJobs(ctx context.Context) {
	p := &protection{m: m}
	for {
		moved := m.pipeline.Moved()
		st := m.pipelineStatus()
		working := p.look(ctx, st)
		working = m.lookAfterResync(st) || working
		var tick <-chan time.Time
		if working {
			tick = time.After(protectLook)
		}
		select {
		case <-ctx.Done():
			if m.quit.Err() != nil {
				m.app.jobs.cancelAll(m.name, "the VM is protected no more")
			}
			return
		case <-moved:
		case <-tick:
		}
	}
}

// look finds or begins the job, brings it to its step, and ends it; true while there is one.
func (p *protection) look(ctx context.Context, st shipper.Status) bool {
	m := p.m
	j := m.app.jobs.running(control.JobProtect, m.name, "")
	if arrived := p.arrived(st); j == nil && (arrived || unprotected(st)) {
		j = m.app.jobs.begin(jobRecord{Job: control.Job{Kind: control.JobProtect, VM: m.name}},
			[]string{stepPrerequisites, stepRelationship, stepInitial, stepFinalize}, nil)
	}
	switch {
	case j == nil:
		return false
	case !slices.ContainsFunc(st.Disks, protectable):
		j.end(control.JobCancelled, "the VM has no disk any more that can be protected", nil)
		return false
	}
	j.follow(func() jobProgress { return initialProgress(m.pipelineStatus()) })
	step := protectStep(st)
	j.step(step)
	if step != stepFinalize || !p.due(st) {
		return true
	}
	result, err := m.proveReadable(ctx, st)
	if err != nil {
		_, _, cause, action := retry.Describe(err)
		j.wait(cause + "; " + action)
		return true
	}
	if result == "" {
		j.wait("the first point that holds every disk")
		return true
	}
	j.end(control.JobDone, result, nil)
	return false
}

// arrived tells whether a disk is complete that was not there, or not complete, at the last look: small ones are
// copied between two looks.
func (p *protection) arrived(st shipper.Status) bool {
	before := p.complete
	p.complete = map[string]bool{}
	arrived := false
	for _, d := range st.Disks {
		if protectable(d) && d.Stage == shipper.StageComplete {
			p.complete[d.ID] = true
			arrived = arrived || before != nil && !before[d.ID]
		}
	}
	return arrived
}

// due tells whether it is time to prove the newest point.
func (p *protection) due(st shipper.Status) bool {
	now := p.m.app.now()
	if st.LastPoint.IsZero() || st.LastPoint == p.proof.point && now.Before(p.proof.next) {
		return false
	}
	p.proof.point, p.proof.next = st.LastPoint, now.Add(proofRetry)
	return true
}

// unprotected tells whether the VM has a disk to protect that is not complete, or no point yet.
func unprotected(st shipper.Status) bool {
	return slices.ContainsFunc(st.Disks, func(d shipper.DiskStatus) bool {
		return protectable(d) && (d.Stage != shipper.StageComplete || st.LastPoint.IsZero())
	})
}

// protectStep is where enabling protection is; a pure function.
func protectStep(st shipper.Status) string {
	complete, begun := true, false
	for _, d := range st.Disks {
		switch {
		case !protectable(d):
			continue
		case d.Err != nil && d.Stage != shipper.StageComplete:
			return stepPrerequisites // the image is not one yet, or damaged
		}
		complete = complete && d.Stage == shipper.StageComplete
		begun = begun || d.Stage != shipper.StageWaiting
	}
	switch {
	case complete:
		return stepFinalize
	case !st.Connected:
		return stepPrerequisites
	case !begun:
		return stepRelationship
	}
	return stepInitial
}

// initialProgress sums what the pipeline says of its disks.
func initialProgress(st shipper.Status) jobProgress {
	var p jobProgress
	for _, d := range st.Disks {
		if protectable(d) {
			p.done += d.InitialDone
			p.total += d.InitialTotal
		}
		if d.Err != nil && protectable(d) && p.message == "" {
			p.message = fmt.Sprintf("disk %s: %v", d.Name, d.Err)
		}
	}
	if len(st.Troubles) > 0 {
		t := st.Troubles[0]
		_, _, cause, _ := retry.Describe(t.Err)
		p.message = t.Stage + ": " + cause
	}
	return p
}

// proveReadable finds the newest point as a reader on another machine would: its record, an unbroken chain of
// segments with the right names, sizes and indices, and of every disk the first and the last MiB. Verify reads
// the rest. "" while no point holds every disk.
func (m *machine) proveReadable(ctx context.Context, st shipper.Status) (string, error) {
	t, err := m.app.openTarget(ctx)
	if err != nil {
		return "", err
	}
	s, err := restore.Hold(ctx, t, m.name, catalog.SpecLatest, nil, restore.HoldOptions{Reader: reader()})
	if errors.Is(err, catalog.ErrNoPoint) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	segments := 0
	for _, plan := range s.Plans() {
		if err = readEnds(s, plan); err != nil {
			err = fmt.Errorf("point %s, disk %s: %w", s.Record().ID(), plan.Disk.Name, err)
			break
		}
		segments += len(plan.Segments)
	}
	disks := len(s.Plans())
	if err := errors.Join(err, s.Close()); err != nil {
		return "", err
	}
	if wanted := len(slices.DeleteFunc(slices.Clone(st.Disks), func(d shipper.DiskStatus) bool { return !protectable(d) })); disks < wanted {
		return "", nil
	}
	return fmt.Sprintf("point %s is readable: %d disks, %d segments; prove every byte with: vhdrelay verify %s", s.Record().ID(), disks, segments, m.name), nil
}

// readEnds reads the first and the last MiB of a disk.
func readEnds(s *restore.Session, plan restore.Plan) error {
	d, err := s.Open(plan)
	if err != nil {
		return err
	}
	buf := make([]byte, min(d.Size(), 1<<20))
	for _, off := range []int64{0, d.Size() - int64(len(buf))} {
		if _, err := d.ReadAt(buf, off); err != nil {
			return err
		}
	}
	return nil
}

// resyncBegan is called when a round of comparisons begins: one job a round, and the same one after a restart.
func (m *machine) resyncBegan(reason string) {
	m.app.jobs.begin(jobRecord{Job: control.Job{Kind: control.JobResync, VM: m.name, Reason: reason}}, []string{stepCompare, stepRepair}, m.resyncProgress)
}

func (m *machine) resyncProgress() jobProgress {
	r := m.resync.status()
	return jobProgress{done: r.ComparedBytes, total: r.TotalBytes, message: fmt.Sprintf("%d bytes differ", r.DifferingBytes)}
}

// resyncCompared is called when a round has ended: what it found goes with the next epochs.
func (m *machine) resyncCompared() {
	if j := m.app.jobs.running(control.JobResync, m.name, ""); j != nil {
		r := m.resync.status()
		after := m.log.LastEpoch()
		j.note(func(rec *jobRecord) {
			rec.After, rec.Differing = after, r.DifferingBytes
			rec.Result = fmt.Sprintf("%d bytes compared, %d found different", r.ComparedBytes, r.DifferingBytes)
		})
		j.step(stepRepair)
	}
}

// lookAfterResync ends the job of a comparison once a point holds what it found; true while there is one.
func (m *machine) lookAfterResync(st shipper.Status) bool {
	j := m.app.jobs.running(control.JobResync, m.name, "")
	if j == nil {
		return false
	}
	j.follow(m.resyncProgress)
	suspect := m.resync.suspect()
	if j.durable().Step() == stepCompare {
		if m.resync.status().State != control.ResyncIdle || suspect {
			return true
		}
		m.resyncCompared() // it ended without our hearing of it: at a restart
	}
	if rec := j.durable(); suspect || rec.Differing > 0 && st.LastPoint.Epoch <= rec.After {
		return true
	}
	sent, rec := m.resync.repaired(), j.durable()
	if rec.Differing == 0 {
		sent = 0 // what guests wrote is none of its business
	}
	j.end(control.JobDone, fmt.Sprintf("%s, %d sent with what was written meanwhile", rec.Result, sent), nil)
	return false
}
