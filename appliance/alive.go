package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/journal/durable"
)

const (
	// StopTimeout is how long a stop may take, whatever the target does: the drain of the stores' requests, twice if they
	// have to be cut off, the last epochs of the VMs, the end of what runs, and the journal's. The unit's TimeoutStopSec is
	// not below it.
	StopTimeout = 2*stopDrain + stopSeal + stopStages + stopRest

	// statusEvery is how often the line for the service manager is made; it is sent when it differs.
	statusEvery = 10 * time.Second

	// answerWithin is how long mounts and locks may take to answer the watchdog's question. One late answer is
	// forgiven: the question is asked four times in a watchdog's interval.
	answerWithin = 10 * time.Second
)

// locksAnswer: no lock is held for ever, and every VM's loop that seals turns.
func (a *Appliance) locksAnswer() error {
	if _, err := a.Status(context.Background(), ""); err != nil { // takes every VM's locks
		return err
	}
	for _, m := range a.machines() {
		if err := m.pipeline.Alive(); err != nil {
			return err
		}
	}
	return nil
}

// starve says why the watchdog gets nothing: the stop that may follow is the manager's, without a word from us.
func (a *Appliance) starve(err error) {
	a.log.Error("watchdog not fed; systemd restarts the appliance if this lasts", "code", "not-alive", "cause", err,
		"action", "look at the store's disk; the goroutines are in the journal after the restart, please report them")
}

// answers asks the mount for something the kernel cannot know: statfs, and a name that nobody asked for before.
func (s *store) answers() error {
	if s.srv.Kept() {
		if err := s.srv.Answers(); err != nil {
			return fmt.Errorf("mount %s does not answer: %w", s.conf.Mount, err)
		}
		return nil
	}
	name := ".vhdrelay-alive-" + strconv.FormatInt(s.app.now().UnixNano(), 36)
	return apart(func() error {
		var fs unix.Statfs_t
		if err := unix.Statfs(s.conf.Mount, &fs); err != nil {
			return fmt.Errorf("mount %s does not answer: %w", s.conf.Mount, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(s.conf.Mount, name), &st); err != unix.ENOENT {
			return fmt.Errorf("mount %s does not answer a lookup: %w", s.conf.Mount, err)
		}
		return nil
	})
}

// apart runs f on a thread of its own that holds none of our files; f uses system calls and nothing that needs a file.
//
// Whoever asks the mount that its own process serves must be apart. The kernel lets a request that the server has read
// be waited for by nothing but its answer, not even by SIGKILL, until the connection ends; and it ends when the last
// thread that holds /dev/fuse has. A thread that waits and holds it keeps a process from ever dying that the watchdog
// wants dead, and with it the mount (tried: every second SIGABRT hung).
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and nobody else ever runs on it
		if unix.Gettid() == unix.Getpid() {
			// Not the main thread: /proc/self/fd, which the shim opens through, is its table. While this goroutine holds
			// it, another cannot get it.
			defer runtime.UnlockOSThread()
			done <- apart(f)
			return
		}
		if err := unix.CloseRange(0, math.MaxUint32, unix.CLOSE_RANGE_UNSHARE); err != nil {
			done <- fmt.Errorf("thread without files: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// ErrNoAnswer is wrapped by what the watchdog is told of a question that hangs.
var ErrNoAnswer = errors.New("no answer")

// vigil asks a question that may hang, without hanging.
type vigil struct {
	ask func() error

	mu struct {
		sync.Mutex // held for memory only
		since      time.Time
		answer     chan error // of the question under way, nil if there is none
	}
}

func newVigil(ask func() error) *vigil { return &vigil{ask: ask} }

// look asks, or goes on waiting for an earlier question's answer, for answerWithin.
func (w *vigil) look() error {
	timer := time.NewTimer(answerWithin)
	defer timer.Stop()
	answer, since := w.question()
	select {
	case err := <-answer:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.mu.answer = nil
		return err
	case <-timer.C:
		return fmt.Errorf("%w for %v", ErrNoAnswer, time.Since(since).Round(time.Second))
	}
}

func (w *vigil) question() (<-chan error, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.answer == nil {
		answer := make(chan error, 1)
		w.mu.answer, w.mu.since = answer, time.Now()
		go func() { answer <- w.ask() }()
	}
	return w.mu.answer, w.mu.since
}

// sentry asks what the watchdog wants to know. It asks nothing of the target, so that an outage never ends the appliance (I9).
type sentry struct {
	mounts, locks, state *vigil
	log                  *slog.Logger
	hangs                bool // told already; look is called by one goroutine
}

func (a *Appliance) newSentry() *sentry {
	return &sentry{mounts: newVigil(a.mountsAnswer), locks: newVigil(a.locksAnswer), state: newVigil(a.stateAnswers), log: a.log}
}

// look is content when mounts and locks answer. Locks are held over commits to the state directory: while its disk hangs, that is
// what they wait for, and an end of the appliance would take the disks from guests whose own store is well (I9).
func (w *sentry) look() error {
	if err := w.mounts.look(); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	err := w.locks.look()
	hangs := err != nil && errors.Is(w.state.look(), ErrNoAnswer)
	if hangs && !w.hangs {
		w.log.Error("the disk of the state directory hangs; guests go on, points wait", "code", "state-disk-hangs", "cause", err,
			"action", "look at the disk of the state directory; do not restart the appliance before it answers, or guests lose their disks")
	}
	if w.hangs = hangs; hangs || err == nil {
		return nil
	}
	return fmt.Errorf("locks and loops of the VMs: %w", err)
}

// until is look, and content once a stop has begun: that has a time limit of its own.
func (w *sentry) until(stopped context.Context) func() error {
	return func() error {
		if stopped.Err() != nil {
			return nil
		}
		return w.look()
	}
}

// stateAnswers puts a file on the state directory's disk. An error is an answer.
func (a *Appliance) stateAnswers() error {
	return durable.WriteFile(filepath.Join(a.config().StateDir, "alive"), []byte(a.now().UTC().Format(time.RFC3339)+"\n"))
}

// line is what `systemctl status` shows of the appliance: how many VMs are how, and the worst one's first reason.
func (a *Appliance) line() string {
	s, err := a.Status(context.Background(), "")
	if err != nil {
		return err.Error()
	}
	return summary(s)
}

func summary(s control.Status) string {
	count := map[control.Health]int{}
	worst := control.VM{Health: control.HealthNormal}
	for _, vm := range s.VMs {
		count[vm.Health]++
		if len(vm.Reasons) > 0 && badness(vm.Health) > badness(worst.Health) {
			worst = vm
		}
	}
	parts := []string{fmt.Sprintf("%d VMs", len(s.VMs))}
	for _, h := range []control.Health{control.HealthCritical, control.HealthWarning, control.HealthNormal} {
		if count[h] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[h], h))
		}
	}
	line := strings.Join(parts, ", ")
	if len(worst.Reasons) > 0 {
		line += fmt.Sprintf("; %s: %s", worst.Name, worst.Reasons[0].Message)
	}
	return strings.Join(strings.Fields(line), " ") // a name may hold a line break
}

func badness(h control.Health) int {
	switch h {
	case control.HealthCritical:
		return 2
	case control.HealthWarning:
		return 1
	}
	return 0
}
