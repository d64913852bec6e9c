package appliance

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/systemd"
)

// The manager must not kill what is still draining: the unit's time is not below the appliance's.
func TestStopFitsIntoTheUnitsTime(t *testing.T) {
	for line := range strings.Lines(systemd.Unit) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), "TimeoutStopSec=")
		if !ok {
			continue
		}
		limit, err := time.ParseDuration(value + "s")
		if err != nil || limit < StopTimeout {
			t.Errorf("TimeoutStopSec=%s (%v), a stop may take %v", value, err, StopTimeout)
		}
		return
	}
	t.Error("the unit has no TimeoutStopSec")
}

// A question that hangs starves the watchdog, is not asked again meanwhile, and its late answer feeds again.
func TestWatchNeitherHangsNorPilesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, hold := 0, make(chan struct{})
		w := newVigil(func() error { asked++; <-hold; return nil })
		for range 3 {
			began := time.Now()
			if err := w.look(); !errors.Is(err, ErrNoAnswer) {
				t.Fatalf("%v", err)
			}
			if took := time.Since(began); took != answerWithin {
				t.Errorf("it took %v", took)
			}
		}
		close(hold)
		if err := w.look(); err != nil || asked != 1 {
			t.Errorf("%v, asked %d times", err, asked)
		}
		broken := errors.New("broken")
		w.ask = func() error { return broken }
		if err := w.look(); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	})
}

// The thread that asks holds none of our files, or it could keep a dying process alive; ours stay open.
func TestAskedApartWithoutOurFiles(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	for range 1000 {
		err := apart(func() error {
			var st unix.Stat_t
			return unix.Fstat(fd, &st)
		})
		if err != unix.EBADF {
			t.Fatalf("a file of ours on that thread: %v, want EBADF", err)
		}
		// The shim opens through /proc/self/fd, which is the main thread's table.
		if err := unix.Access("/proc/self/fd/"+strconv.Itoa(fd), unix.F_OK); err != nil {
			t.Fatalf("our file in /proc/self/fd: %v", err)
		}
	}
	if _, err := f.WriteString("x"); err != nil {
		t.Errorf("our own file: %v", err)
	}
}

// I9: while the state directory's disk hangs, so do the locks held over its commits; guests of a healthy store must not lose
// their disks for that. Locks that hang beside a disk that answers are a defect, and a mount that hangs is one anyhow.
func TestI9_AHangingStateDiskDoesNotStarveTheWatchdog(t *testing.T) {
	for name, c := range map[string]struct{ mounts, locks, state, starves bool }{
		"all well":           {},
		"a lock":             {locks: true, starves: true},
		"a mount":            {mounts: true, starves: true},
		"the state disk":     {locks: true, state: true},
		"state disk, mount":  {mounts: true, locks: true, state: true, starves: true},
		"state disk, unused": {state: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hold := make(chan struct{})
				ask := func(hangs bool) *vigil {
					return newVigil(func() error {
						if hangs {
							<-hold
						}
						return nil
					})
				}
				var log bytes.Buffer
				w := &sentry{mounts: ask(c.mounts), locks: ask(c.locks), state: ask(c.state), log: slog.New(slog.NewTextHandler(&log, nil))}
				for range 2 {
					if err := w.look(); errors.Is(err, ErrNoAnswer) != c.starves || !c.starves && err != nil {
						t.Errorf("%v", err)
					}
				}
				if got := strings.Count(log.String(), "state-disk-hangs") == 1; got != (c.locks && c.state && !c.mounts) {
					t.Errorf("log: %s", log.String())
				}
				close(hold)
			})
		})
	}
}

func TestStateDirectoryAnswersWithAnErrorToo(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.start()
	if err := r.app.stateAnswers(); err != nil {
		t.Error(err)
	}
	if err := r.app.newSentry().look(); err != nil {
		t.Error(err)
	}
}

// A stop may take longer than the watchdog's time, and its mounts need not answer any more.
func TestVigilIsContentOnceAStopHasBegun(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	broken := errors.New("broken")
	ask := (&sentry{mounts: newVigil(func() error { return broken })}).until(ctx)
	if err := ask(); !errors.Is(err, broken) {
		t.Errorf("before the stop: %v", err)
	}
	stop()
	if err := ask(); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestSummaryIsOneLineAboutTheWorst(t *testing.T) {
	vm := func(name string, h control.Health, reasons ...string) control.VM {
		v := control.VM{Name: name, Health: h}
		for _, r := range reasons {
			v.Reasons = append(v.Reasons, control.Reason{Message: r})
		}
		return v
	}
	for want, s := range map[string]control.Status{
		"0 VMs":           {},
		"1 VMs, 1 Normal": {VMs: []control.VM{vm("a", control.HealthNormal)}},
		"3 VMs, 1 Critical, 1 Warning, 1 Normal; c d: the disk is broken": {VMs: []control.VM{
			vm("a", control.HealthWarning, "slow"), vm("b", control.HealthNormal), vm("c\nd", control.HealthCritical, "the disk\nis broken", "more"),
		}},
	} {
		if got := summary(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
