package appliance

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// lookEvery is how often a VM is looked at when nothing moves and nobody asks.
const lookEvery = 10 * time.Second

// life is where the VM of that name stands. It outlives the VM's machine: what was
// unprotected is known by it. The caller holds a.mu.
func (a *Appliance) lifeLocked(name string) (*lifecycle.Life, error) {
	if l := a.mu.lives[name]; l != nil {
		return l, nil
	}
	l, err := lifecycle.Open(documents{a.journal}, name, a.now)
	if err != nil {
		return nil, err
	}
	a.mu.lives[name] = l
	return l, nil
}

// openLives reads where every VM stood, before any image is attached: an
// unprotected one must not be tracked.
func (a *Appliance) openLives() error {
	keys, err := a.journal.Documents(lifecycle.Prefix)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range keys {
		if _, err := a.lifeLocked(key[len(lifecycle.Prefix):]); err != nil {
			return err
		}
	}
	return nil
}

// isUnprotected tells whether an operator took the VM out.
func (a *Appliance) isUnprotected(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.mu.lives[name]
	return l != nil && l.Record().Unprotected
}

// look sees where the VM stands now.
func (m *machine) look(p shipper.Status, r control.Resync, k mark) (lifecycle.State, time.Time) {
	seen := stateOf(p, r, k)
	if before, _ := m.life.State(); before == lifecycle.Error && !p.Connected && len(p.Troubles) == 0 && seen != lifecycle.Disabled {
		seen = before // a restart mends nothing: what was wrong shows, or does not, once the target was asked
	}
	if err := m.life.See(seen); err != nil {
		m.app.log.Error("a state that the table does not know the way to", "vm", m.name, "code", "state-unknown-path", "cause", err, "action", "report it with the log: this is a defect of vhdrelay")
	}
	return m.life.State()
}

// lookAgain is look with the facts of now.
func (m *machine) lookAgain() lifecycle.State {
	s, _ := m.look(m.pipelineStatus(), m.resync.status(), m.marked())
	return s
}

// watchLife looks at the VM whenever something moves, keeps what was seen, and
// samples its trend, until ctx ends.
func (m *machine) watchLife(ctx context.Context) {
	failing := false
	for {
		moved := m.pipeline.Moved()
		m.lookAgain()
		m.trend.sample(m.pipeline.Status(), m.replication().Interval, m.app.now())
		err := m.life.Flush()
		if err != nil && !failing {
			m.app.log.Warn("the state of a VM is not kept; it is tried again", "vm", m.name, "code", "state-not-kept", "cause", err, "action", "look at the disk of the state directory")
		}
		failing = err != nil
		if !m.wait(ctx, moved) {
			_ = m.life.Flush() // the next look sees what this could not keep
			return
		}
	}
}

// wait returns when something moved or it is time to look; false when ctx ended.
func (m *machine) wait(ctx context.Context, moved <-chan struct{}) bool {
	t := time.NewTimer(lookEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-moved:
	case <-t.C:
	}
	return true
}

// permits refuses a command that the state does not allow (exit code 6).
func (m *machine) permits(command lifecycle.Event) error {
	return refusal(lifecycle.Permit(m.name, m.lookAgain(), command))
}

// refusal makes a *lifecycle.Refusal what an operator gets.
func refusal(err error) error {
	var r *lifecycle.Refusal
	if !errors.As(err, &r) {
		return described(err)
	}
	return control.Refused(control.CodeRefused, r.WayOut, "%s", r.Error())
}

// Pause implements control.Backend.
func (a *Appliance) Pause(ctx context.Context, vm string) (control.Moved, error) {
	m, err := a.find(vm)
	if err != nil {
		return control.Moved{}, a.unlessUnprotected(vm, lifecycle.Pause, err)
	}
	m.lookAgain()
	if held, err := m.resync.pause(); held || err != nil {
		m.lookAgain() // a comparison that runs or waits is what is paused; the rest goes on
		return m.moved(), described(err)
	}
	if err := m.life.Do(lifecycle.Pause, lifecycle.Paused, nil); err != nil {
		return control.Moved{}, refusal(err)
	}
	a.log.Info("VM paused", "vm", vm)
	if err := m.pipeline.Rest(ctx); err != nil {
		return control.Moved{}, err
	}
	return m.moved(), nil
}

// Resume implements control.Backend. Of a VM in Error it tries again what an operator
// had to mend.
func (a *Appliance) Resume(_ context.Context, vm string) (control.Moved, error) {
	m, err := a.find(vm)
	if err != nil {
		return control.Moved{}, a.unlessUnprotected(vm, lifecycle.Resume, err)
	}
	before := m.lookAgain()
	if m.resync.paused() {
		err := m.resync.resume()
		m.lookAgain()
		return m.moved(), described(err)
	}
	if err := lifecycle.Permit(vm, before, lifecycle.Resume); err != nil {
		return control.Moved{}, refusal(err)
	}
	if err := m.life.Do(lifecycle.Resume, m.resumesTo(before), nil); err != nil {
		return control.Moved{}, refusal(err)
	}
	m.pipeline.GoOn()
	a.log.Info("VM resumed", "vm", vm)
	m.lookAgain()
	return m.moved(), nil
}

// resumesTo is what is seen of a VM that is resumed, as far as a resume leads there.
// What was wrong is looked into then, and does not count meanwhile.
func (m *machine) resumesTo(from lifecycle.State) lifecycle.State {
	p := m.pipelineStatus()
	p.Troubles, p.Resting = nil, false
	seen := stateOf(p, m.resync.status(), m.marked())
	if slices.Contains(lifecycle.Targets(from, lifecycle.Resume), seen) {
		return seen
	}
	return lifecycle.Ready
}

func (m *machine) moved() control.Moved {
	s, _ := m.life.State()
	return control.Moved{VM: m.name, State: string(s)}
}

// unlessUnprotected is the error of a command for a VM without a machine: one that
// was unprotected refuses it, another is not there.
func (a *Appliance) unlessUnprotected(vm string, command lifecycle.Event, err error) error {
	if !a.isUnprotected(vm) {
		return err
	}
	return refusal(lifecycle.Permit(vm, lifecycle.Disabled, command))
}
