package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
)

// compareRetry is how long a comparison that failed waits for its next try, and the
// longest that the window, the scrub and what the pipeline found are not looked at.
const compareRetry = 10 * time.Second

// comparePause is the least time between two turns.
const comparePause = 500 * time.Millisecond

// A comparison that fails is tried again, and says so everywhere.
const (
	codeComparison   = "comparison-failed"
	actionComparison = "look at the image, at the disk of the state directory and at the target; it is tried again"
)

// runner is a comparison under way: resync.Scanner, Deep or Match.
type runner interface {
	Pause()
	Resume()
}

// resyncer does the comparisons of one VM, one disk after the other: source × target
// to find out a table, source × table of what is suspect, target × table (deep).
type resyncer struct {
	m      *machine
	kick   chan struct{}
	wishes *wishes

	mu struct {
		sync.Mutex // never held over I/O
		running    runner
		progress   func() control.Resync // of the running one
		stop       context.CancelCauseFunc
		begun      bool           // a round is under way
		last       control.Resync // the running round or the last: every disk that was compared in it
		err        error          // why the newest try ended early
		failures   int            // tries that did
		sent       sent
	}
}

func newResyncer(m *machine) (*resyncer, error) {
	w, err := openWishes(documents{m.app.journal}, m.log.ID())
	if err != nil {
		return nil, err
	}
	r := &resyncer{m: m, kick: make(chan struct{}, 1), wishes: w}
	r.mu.last.State = control.ResyncIdle
	r.mu.sent.begin(0) // what a round of before the restart found may be repaired yet
	return r, nil
}

func (r *resyncer) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// run compares whenever there is something to compare and its time has come, until
// ctx ends. A disk without a table waits for one: the pipeline's movement wakes it.
func (r *resyncer) run(ctx context.Context) {
	for {
		moved := r.m.pipeline.Moved()
		err := r.turn(ctx)
		if ctx.Err() != nil {
			return
		}
		r.note(err)
		if !r.rest(ctx, moved) {
			return
		}
	}
}

// rest waits for the next turn; false when ctx ended. What a turn does may move the
// pipeline: some time passes between two, unless somebody asks.
func (r *resyncer) rest(ctx context.Context, moved <-chan struct{}) bool {
	for _, wait := range []struct {
		moved <-chan struct{}
		most  time.Duration
	}{{nil, comparePause}, {moved, compareRetry}} {
		select {
		case <-ctx.Done():
			return false
		case <-r.kick:
			return true
		case <-wait.moved:
		case <-time.After(wait.most):
		}
	}
	return true
}

func (r *resyncer) note(err error) {
	r.mu.Lock()
	first := err != nil && r.mu.err == nil
	r.mu.err = err
	if err != nil {
		r.mu.failures++
	}
	r.mu.Unlock()
	if first {
		r.m.app.log.Warn("comparison failed; it is tried again", "vm", r.m.name, "code", codeComparison, "cause", err, "action", actionComparison)
	}
}

// turn does all that may be done now.
func (r *resyncer) turn(ctx context.Context) error {
	if err := r.wishes.gather(r); err != nil {
		return err
	}
	if r.wishes.get().Held == heldPaused {
		return nil
	}
	for _, task := range r.tasks() {
		if !r.allowed(task) {
			continue
		}
		if r.begin() {
			r.m.resyncBegan(task.reason)
		}
		if err := r.do(ctx, task); err != nil {
			return err
		}
	}
	if len(r.tasks()) > 0 {
		return nil
	}
	if r.end() {
		r.m.resyncCompared()
	}
	return r.wishes.done()
}

// task is one comparison of one disk that is to be done.
type task struct {
	a      *attached
	kind   taskKind
	reason string
}

type taskKind int

const (
	taskMatch  taskKind = iota // source × target: a table is to be found out
	taskSource                 // source × table
	taskDeep                   // target × table
)

// tasks are what is to be compared, the most urgent first.
func (r *resyncer) tasks() []task {
	var match, source, deep []task
	matching := map[string]bool{}
	for _, id := range r.m.pipeline.Matching() {
		matching[id] = true
	}
	wanted := r.wishes.get().Deep
	for _, a := range r.m.store.disksOf(r.m) {
		id, isDisk := r.m.pipeline.DiskOf(a.disk.ID())
		if isDisk && matching[id] {
			match = append(match, task{a, taskMatch, "its checksum table is rebuilt from the replica"})
		}
		if a.disk.Suspected() {
			source = append(source, task{a, taskSource, a.disk.Recovery().Reason})
		}
		if w, ok := wanted[a.disk.Name()]; ok && isDisk {
			deep = append(deep, task{a, taskDeep, w.Reason})
		}
	}
	return append(append(match, source...), deep...)
}

// allowed tells whether a task's time has come. What a crash left, and a table that
// is missing, wait for nobody; the rest waits for the window, unless an operator has
// asked for it at once.
func (r *resyncer) allowed(t task) bool {
	w := r.wishes.get()
	switch {
	case t.kind == taskMatch, t.kind == taskSource && t.reason == journal.ReasonUnclean:
		return true
	case w.Held == heldCancelled, t.kind == taskDeep && !r.m.pipeline.Connected():
		return false
	}
	return w.Now || r.m.app.config().Resync.Window.Contains(r.m.app.now())
}

// errStopped ends a comparison that goes on later: the window closed, or it was
// cancelled.
var errStopped = errors.New("comparison stopped")

// do runs one task, as long as the window is open for it.
func (r *resyncer) do(ctx context.Context, t task) error {
	inner, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer r.m.store.pace.Begin()()
	defer r.closeWith(inner, t, stop)()
	r.mu.Lock()
	r.mu.stop = stop
	r.mu.Unlock()
	var err error
	switch t.kind {
	case taskMatch:
		err = r.match(inner, t)
	case taskSource:
		err = r.compare(inner, t)
	case taskDeep:
		err = r.deep(inner, t)
	}
	r.ran()
	if err == nil || ctx.Err() != nil || errors.Is(context.Cause(inner), errStopped) || !r.m.store.tracks(t.a) {
		return nil
	}
	return fmt.Errorf("compare %s: %w", t.a.at(), err)
}

// closeWith stops a task that needs the window when that closes; the function it
// returns ends the watch.
func (r *resyncer) closeWith(ctx context.Context, t task, stop context.CancelCauseFunc) func() {
	watch, end := context.WithCancel(ctx)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for r.allowed(t) {
			select {
			case <-watch.Done():
				return
			case <-tick.C:
			}
		}
		stop(errStopped)
	}()
	return end
}

// start shows a comparison that begins, paused if an operator wants it so.
func (r *resyncer) start(c runner, progress func() control.Resync) {
	r.mu.Lock()
	r.mu.running, r.mu.progress = c, progress
	r.mu.Unlock()
	if r.wishes.get().Held == heldPaused {
		c.Pause()
	}
}

// ran adds what a comparison did to its round.
func (r *resyncer) ran() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.progress != nil {
		r.mu.last = sum(r.mu.last, r.mu.progress())
	}
	r.mu.running, r.mu.progress, r.mu.stop = nil, nil, nil
}

// begin forgets the last round, unless that goes on: false.
func (r *resyncer) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.begun {
		return false
	}
	r.mu.begun = true
	r.mu.sent.begin(r.m.pipeline.Sent())
	r.mu.last = control.Resync{State: control.ResyncIdle, Started: r.m.app.now().UTC()}
	return true
}

// end ends a round; false if there is none.
func (r *resyncer) end() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.mu.begun {
		return false
	}
	r.mu.begun, r.mu.last.Ended = false, r.m.app.now().UTC()
	return true
}

// compare is source × table.
func (r *resyncer) compare(ctx context.Context, t task) error {
	if r.m.pipeline.Unread(t.a.disk.ID()) {
		return r.leaveToCapture(ctx, t)
	}
	c, ready := r.m.comparison(t.a.disk, t.a)
	if !ready {
		return nil
	}
	s := resync.New(resync.Deps{Source: c.source, Table: c.table, Layout: c.layout}, resync.Options{Reason: t.reason, Yield: r.m.store.yield, Hook: r.m.app.hook})
	r.start(s, func() control.Resync { return shown(s.Progress(), resync.Cost{}, t) })
	report, err := s.Run(ctx)
	if err != nil {
		return err
	}
	r.m.app.log.Info("compared with the checksum table", "vm", r.m.name, "disk", t.a.disk.Name(), "reason", t.reason,
		"compared_bytes", report.Compared, "differing_bytes", report.Differing)
	r.m.pipeline.SealSoon()
	return nil
}

// leaveToCapture puts what is suspect of an image in a chain into the change set: what the disk has of it only all the images
// of the chain can tell, which the next capture reads at one moment, and compares with the table.
func (r *resyncer) leaveToCapture(ctx context.Context, t task) error {
	var marked int64
	end := extent.Cover[extent.FileBlock](0, t.a.disk.Size()).End
	for _, suspect := range t.a.disk.Suspect() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if in := suspect.Intersect(extent.Range[extent.FileBlock]{End: end}); !in.Empty() {
			t.a.disk.Mark(in)
			marked += in.Bytes()
		}
		if err := t.a.disk.Compared(suspect); err != nil {
			return err
		}
	}
	r.m.app.log.Info("the next capture compares what is suspect of an image in a chain", "vm", r.m.name, "path", t.a.at(), "reason", t.reason, "bytes", marked)
	r.m.pipeline.SealSoon()
	return nil
}

// sent is what the target took since a round began, until the point that repairs what
// the round found. It counts from the start of the process where the round began before.
type sent struct {
	from, bytes int64
	counting    bool
}

func (s *sent) begin(now int64) { *s = sent{from: now, counting: true} }

// look returns the bytes so far.
func (s *sent) look(now int64) int64 {
	if s.counting {
		s.bytes = now - s.from
	}
	return s.bytes
}

// repaired ends the counting of a round: a point holds what it found. It returns what
// was sent.
func (r *resyncer) repaired() int64 {
	now := r.m.pipeline.Sent()
	r.mu.Lock()
	defer r.mu.Unlock()
	bytes := r.mu.sent.look(now)
	r.mu.sent.counting = r.mu.begun
	return bytes
}

// status is the running round or the last one.
func (r *resyncer) status() control.Resync {
	tasks, held, taken := r.tasks(), r.wishes.get().Held, r.m.pipeline.Sent()
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.mu.last
	if r.mu.progress != nil {
		now = sum(now, r.mu.progress())
		now.State = control.ResyncRunning
	}
	if bytes := r.mu.sent.look(taken); now.DifferingBytes > 0 {
		now.SentBytes = bytes
	}
	switch {
	case len(tasks) == 0 && r.mu.progress == nil:
		return now
	case held == heldPaused:
		now.State = control.ResyncPaused
	case r.mu.progress == nil:
		now.State, now.Reason = control.ResyncWaiting, tasks[0].reason
	}
	return now
}

// failure is why the newest try ended early, and how many did.
func (r *resyncer) failure() (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.failures, r.mu.err
}

// shown is what the status says of one comparison.
func shown(p resync.Progress, c resync.Cost, t task) control.Resync {
	return control.Resync{ComparedBytes: p.Compared, TotalBytes: p.Total, DifferingBytes: p.Differing, Reason: t.reason,
		Deep: t.kind == taskDeep, Requests: c.Sums + c.Reads, DownloadedBytes: c.Downloaded}
}

// sum adds one comparison to a round.
func sum(r, c control.Resync) control.Resync {
	r.ComparedBytes += c.ComparedBytes
	r.TotalBytes += c.TotalBytes
	r.DifferingBytes += c.DifferingBytes
	r.Requests += c.Requests
	r.DownloadedBytes += c.DownloadedBytes
	r.Deep = r.Deep || c.Deep
	if c.Reason != "" {
		r.Reason = c.Reason
	}
	return r
}

// await returns when there is nothing to compare any more, or not now, or a try
// failed.
func (r *resyncer) await(ctx context.Context, progress func(control.Progress)) (control.Resync, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	before, _ := r.failure()
	for {
		now := r.status()
		if n, err := r.failure(); n != before && err != nil {
			return now, &control.Error{Code: codeComparison, Message: err.Error(), Action: actionComparison, Exit: control.ExitFailed, Err: err}
		}
		if now.State == control.ResyncIdle || now.State == control.ResyncPaused || now.State == control.ResyncWaiting && !r.soon() {
			return now, nil
		}
		if progress != nil {
			progress(control.Progress{Stage: "comparing", Done: now.ComparedBytes, Total: now.TotalBytes})
		}
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-tick.C:
		}
	}
}

// soon tells whether something that waits may begin by itself now.
func (r *resyncer) soon() bool {
	for _, t := range r.tasks() {
		if r.allowed(t) {
			return true
		}
	}
	return false
}

// suspect tells whether anything of the VM is still to be compared.
func (r *resyncer) suspect() bool { return len(r.tasks()) > 0 }
