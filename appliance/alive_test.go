package appliance

import (
	"context"
	"errors"
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

// A stop may take longer than the watchdog's time, and its mounts need not answer any more.
func TestVigilIsContentOnceAStopHasBegun(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	broken := errors.New("broken")
	ask := newVigil(func() error { return broken }).until(ctx)
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
