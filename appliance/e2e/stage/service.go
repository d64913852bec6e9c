package stage

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	vm "github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
)

// Service ends the appliance again and again under the systemd of a Debian guest while a load writes: restarts, SIGKILLs, a
// restart with a configuration that does not read, an upgrade. With a kernel that can resend nobody at the mount sees any
// of it. With an older one open files see I/O errors, as the README says: that is said, the mount is made afresh, nothing that
// was answered is lost, and replication goes on.
type Service struct {
	Image    vm.Image
	Payload  string // disk with agent and appliance
	Hot      bool   // the image's kernel can resend: 6.9 and later
	Restarts int    // systemctl restart
	Kills    int    // SIGKILL of the main process
	Next     string // in the machine, a later release of the appliance (rig.BuildNext) to upgrade to; "": none
}

// Run boots the machine and does all that.
func (s Service) Run(ctx context.Context, e *Env, r *Report) (err error) {
	m, end, err := newInside(ctx, e, r, "service", s.Image, s.Payload)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := m.install(ctx); err != nil {
		return err
	}
	x := &servant{inside: m, service: s}
	kernel, err := m.machine.Run(ctx, "uname", "-r")
	if err != nil {
		return err
	}
	r.Figure("kernel", "%s", strings.TrimSpace(kernel))
	if s.Hot {
		return x.hot(ctx)
	}
	return x.cold(ctx)
}

type servant struct {
	*inside
	service Service
	gone    time.Duration // the longest until the next process serves
}

// end is one end of the process that serves, and the wait for the next one.
type end struct {
	name string
	run  func(context.Context) error
}

// ends mixes kills into the restarts.
func (x *servant) ends() []end {
	restart, kill := end{"restart", x.restart}, end{"SIGKILL", x.kill}
	all := make([]end, 0, x.service.Restarts+x.service.Kills)
	for i := range x.service.Restarts {
		all = append(all, restart)
		for len(all)-i-1 < (i+1)*x.service.Kills/x.service.Restarts {
			all = append(all, kill)
		}
	}
	return all
}

func (x *servant) restart(ctx context.Context) error {
	_, err := x.machine.Run(ctx, "systemctl", "restart", "vhdrelay")
	return err
}

// kill ends the main process and waits for the next one that is ready.
func (x *servant) kill(ctx context.Context) error {
	before, err := x.property(ctx, "NRestarts")
	if err == nil {
		_, err = x.machine.Run(ctx, "systemctl", "kill", "--kill-who=main", "-s", "KILL", "vhdrelay")
	}
	if err != nil {
		return err
	}
	return x.rig.Await(ctx, "the next process", func() (bool, error) {
		out, err := x.property(ctx, "NRestarts")
		if err != nil || out == before {
			return false, err
		}
		state, err := x.property(ctx, "ActiveState")
		return state == "active", err
	})
}

func (x *servant) property(ctx context.Context, name string) (string, error) {
	out, err := x.machine.Run(ctx, "systemctl", "show", "vhdrelay", "--value", "-p", name)
	return strings.TrimSpace(out), err
}

// endTimeout is for one end in an emulated machine.
const endTimeout = 3 * time.Minute

// timed runs one end.
func (x *servant) timed(ctx context.Context, i int, e end) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	began := time.Now()
	if err := e.run(ctx); err != nil {
		return fmt.Errorf("%s %d: %w", e.name, i+1, err)
	}
	x.gone = max(x.gone, time.Since(began))
	x.env.say("%s %d: served again after %v, %d writes answered", e.name, i+1, time.Since(began).Round(time.Millisecond), x.log.Totals().Writes)
	return nil
}

// lines counts the lines of the unit's journal that match.
func (x *servant) lines(ctx context.Context, pattern string) (int, error) {
	out, err := x.machine.Run(ctx, "journalctl", "-b", "-u", "vhdrelay", "-o", "cat", "--no-pager")
	return len(regexp.MustCompile(pattern).FindAllString(out, -1)), err
}

// said wants so many more lines like a pattern after do than before it.
func (x *servant) said(ctx context.Context, pattern string, times int, do func() error) error {
	before, err := x.lines(ctx, pattern)
	if err == nil {
		err = do()
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return x.rig.Await(ctx, fmt.Sprintf("%d lines like %q", times, pattern), func() (bool, error) {
		after, err := x.lines(ctx, pattern)
		if err == nil && after > before+times {
			err = fmt.Errorf("%d lines like %q, want %d", after-before, pattern, times)
		}
		return after == before+times, err
	})
}

// The lines by which one knows what became of the mount.
const (
	takenOver = `msg="store taken over from the process before this one; guests go on"`
	afresh    = `msg="store mounted"`
)

// hot is one load over all ends: it sees none of them.
func (x *servant) hot(ctx context.Context) error {
	x.guest.start(ctx)
	all := x.ends()
	err := x.said(ctx, takenOver, len(all)+x.extra(), func() error {
		return x.said(ctx, afresh, 0, func() error {
			for i, e := range all {
				if err := x.round(ctx, i, e); err != nil {
					return err
				}
			}
			return errors.Join(x.reexec(ctx), x.wrongConfig(ctx), x.upgrade(ctx))
		})
	})
	x.report.Check(x.guest.stop(), "the load, which was to see nothing")
	x.report.Check(x.atEnd(ctx), "the end")
	x.report.Figure("ends", "%d restarts, %d kills, %d others: served again after at most %v, the longest write took %v", x.service.Restarts, x.service.Kills, x.extra(),
		x.gone.Round(time.Millisecond), x.longest().Round(time.Millisecond))
	return errors.Join(err, x.checkAll(ctx, mostPoints))
}

// extra is how many more takeovers there are than ends: wrongConfig has two, reexec and upgrade one.
func (x *servant) extra() int {
	if x.service.Next != "" {
		return 4
	}
	return 3
}

// round is an end at a moment of no meaning, in every fifth round with a point judged after it.
func (x *servant) round(ctx context.Context, i int, e end) error {
	if err := x.pause(ctx, time.Duration(x.env.rng(uint64(i)).Int64N(int64(2*time.Second)))); err != nil {
		return fmt.Errorf("the load fails before %s %d: %w", e.name, i+1, err)
	}
	if err := x.timed(ctx, i, e); err != nil {
		return err
	}
	if i%5 == 4 {
		_, err := x.syncInside(ctx)
		x.report.Check(err, "point after %s %d", e.name, i+1)
	}
	return nil
}

func (x *servant) longest() (most time.Duration) {
	for _, d := range x.log.Took(time.Time{}, time.Now().Add(time.Hour)) {
		most = max(most, d)
	}
	return most
}

// wrongConfig restarts with a configuration that does not read: the one of before stays in force.
func (x *servant) wrongConfig(ctx context.Context) error {
	return x.said(ctx, "the one of before stays in force", 1, func() error {
		if err := x.machine.Put(ctx, configPath, x.config("surprise: 1\n"), 0o600); err != nil {
			return err
		}
		err := x.timed(ctx, 0, end{"restart with a wrong configuration", x.restart})
		err = errors.Join(err, x.machine.Put(ctx, configPath, x.config(""), 0o600))
		if err != nil {
			return err
		}
		return x.timed(ctx, 0, end{"restart with the right one", x.restart})
	})
}

// reexec is what an upgrade of systemd does: the next manager has what the one before it kept.
func (x *servant) reexec(ctx context.Context) error {
	return x.timed(ctx, 0, end{"restart after a daemon-reexec", func(ctx context.Context) error {
		_, err := x.machine.Shell(ctx, "systemctl daemon-reexec && systemctl restart vhdrelay")
		return err
	}})
}

// laterRelease is what a build that nobody gave a version says of itself.
const laterRelease = "development"

// upgrade puts the later release in place, as a package does, and restarts.
func (x *servant) upgrade(ctx context.Context) error {
	if x.service.Next == "" {
		return nil
	}
	return x.said(ctx, "msg=serving version="+laterRelease, 1, func() error {
		const binary = "/usr/local/bin/vhdrelay"
		if _, err := x.machine.Shell(ctx, "cp "+x.service.Next+" "+binary+".new && mv "+binary+".new "+binary); err != nil {
			return err
		}
		return x.timed(ctx, 0, end{"upgrade", x.restart})
	})
}

// cold has a load for every end, which sees it.
func (x *servant) cold(ctx context.Context) error {
	for i, e := range x.ends() {
		if err := x.cut(ctx, i, e); err != nil {
			return fmt.Errorf("%s %d: %w", e.name, i+1, err)
		}
	}
	x.report.Check(x.atEnd(ctx), "the end")
	x.report.Figure("ends", "%d restarts, %d kills: mounted again after at most %v", x.service.Restarts, x.service.Kills, x.gone.Round(time.Millisecond))
	return x.checkAll(ctx, mostPoints)
}

// cut is an end under a load that loses its files: it is told so, and so is the administrator.
func (x *servant) cut(ctx context.Context, i int, e end) error {
	x.guest.start(ctx)
	if err := x.pause(ctx, time.Duration(x.env.rng(uint64(i)).Int64N(int64(2*time.Second)))); err != nil {
		return fmt.Errorf("the load fails before: %w", err)
	}
	loud := `level=WARN msg="store is in use and is detached; open images see I/O errors from now on"`
	if e.name == "SIGKILL" {
		loud = `level=WARN msg="the mount of a daemon that is gone is detached"`
	}
	err := x.said(ctx, loud, 1, func() error {
		return x.said(ctx, afresh, 1, func() error {
			return x.said(ctx, takenOver, 0, func() error { return x.timed(ctx, i, e) })
		})
	})
	lost := x.guest.stop()
	if err != nil {
		return errors.Join(err, lost)
	}
	if lost == nil || errors.Is(lost, errStuck) || vm.Gone(lost) {
		x.report.Fail("%s %d: the load was to lose its files, and ended with: %v", e.name, i+1, lost)
	}
	if err := x.machine.CloseFiles(ctx); err != nil {
		return err
	}
	x.report.Check(x.cleanly(ctx, e), "after %s %d", e.name, i+1)
	_, err = x.syncInside(ctx)
	x.report.Check(err, "point after %s %d", e.name, i+1)
	return nil
}

// cleanly wants nothing to compare after a restart.
func (x *servant) cleanly(ctx context.Context, e end) error {
	out, err := x.machine.Shell(ctx, `vhdrelay status --json | sed -n 's/.*"suspect_bytes": \([0-9]*\).*/\1/p' | head -n 1`)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err == nil && (e.name == "restart") != (n == 0) {
		err = fmt.Errorf("%d bytes are suspect", n)
	}
	if err == nil && n > spanOf(x.disks) {
		err = fmt.Errorf("%d bytes are suspect: more than the load can have written", n)
	}
	return err
}

// atEnd wants the newest point equal to the store, a stop that takes the mount away, and a sound journal. The machine is off
// then.
func (x *servant) atEnd(ctx context.Context) error {
	if err := x.machine.CloseFiles(ctx); err != nil {
		return err
	}
	point, err := x.syncInside(ctx)
	if err != nil {
		return err
	}
	images, err := x.readPoint(point)
	if err != nil {
		return err
	}
	if _, err = x.machine.Shell(ctx, "systemctl stop vhdrelay && ! mountpoint -q /vhd && vhdrelay journal check && sync"); err != nil {
		return err
	}
	if err := errors.Join(x.machine.Kill(), x.machine.Close()); err != nil {
		return err
	}
	source, err := x.readStore(ctx)
	if err != nil {
		return err
	}
	return errors.Join(x.same(point, images, source), x.rig.Verify(ctx, x.vm, point.ID))
}
