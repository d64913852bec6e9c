package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/systemd"
)

// errState: the state directory cannot be used. The guests come first (I9): they are
// served without it.
var errState = errors.New("the state directory cannot be used")

const (
	codeState   = "state-unusable"
	actionState = "mend the cause, then: systemctl restart vhdrelay; disks that were written meanwhile are compared whole, nothing is sent that the target has"
)

// actionOf is the next action: what the cause says itself, or that it is to be mended.
func actionOf(cause error) string {
	if a := (retry.Advised)(nil); errors.As(cause, &a) {
		return a.ErrorAction()
	}
	return actionState
}

// serveBare serves the stores without a journal until ctx ends: nothing is tracked,
// and an image is marked suspect on itself, durably, before its first change.
func (a *Appliance) serveBare(ctx context.Context, cause error) error {
	notify, err := systemd.FromEnvironment()
	if err != nil {
		return err
	}
	a.notify = notify
	signal.Ignore(syscall.SIGHUP) // the config is read at the restart
	defer signal.Reset(syscall.SIGHUP)
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, run := errgroup.WithContext(run)
	marks := make([]*marker, len(a.stores))
	for i, s := range a.stores {
		marks[i] = &marker{store: s}
		marks[i].mu.files = map[fileID]*marked{}
		s.volumes = marks[i]
	}
	if err = a.mountAll(); err == nil {
		a.log.Error("disks are served untracked, nothing is replicated", "code", codeState, "cause", cause, "action", actionOf(cause))
		for _, s := range a.stores {
			g.Go(func() error { return s.watch(run) })
		}
		refusal := control.Refused(codeState, actionOf(cause), "%v", cause)
		g.Go(func() error {
			return control.ServeStatus(run, a.listener, func(vm string) (control.Status, error) { return a.bareStatus(vm, cause) }, refusal, a.log)
		})
		go notify.Watchdog(run, newVigil(a.mountsAnswer).look, a.starve) // not waited for, as in serve
		err = notify.Ready()
		select {
		case <-ctx.Done():
		case <-run.Done():
		}
	}
	err = errors.Join(err, notify.Stopping(), a.unmountAll(context.WithoutCancel(ctx)))
	stop()
	err = errors.Join(err, g.Wait())
	for _, m := range marks {
		err = errors.Join(err, m.close())
	}
	return err
}

func (a *Appliance) mountsAnswer() error {
	for _, s := range a.stores {
		if s.leaving.Load() {
			continue
		}
		if err := s.answers(); err != nil {
			return err
		}
	}
	return nil
}

// bareStatus is the status of VMs of which nothing is known but that their images are
// there; vm "" asks for all.
func (a *Appliance) bareStatus(vm string, cause error) (control.Status, error) {
	status := control.Status{Version: Version}
	since := a.now()
	var names []string
	for _, s := range a.stores {
		err := s.walk(func(rel, _ string) error {
			if owner, _, ok := belongs(s.conf, rel); ok && image.IsImageName(rel) && !slices.Contains(names, owner) {
				names = append(names, owner)
			}
			return nil
		})
		if err != nil {
			return status, err
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if vm != "" && vm != name {
			continue
		}
		reason := critical(codeState, actionOf(cause), "disks are served untracked, nothing is replicated: %v", cause)
		reason.Since = since
		status.VMs = append(status.VMs, control.VM{Name: name, State: string(lifecycle.Error), Health: control.HealthCritical,
			Reasons: []control.Reason{reason}, Resync: control.Resync{State: control.ResyncIdle}})
	}
	if vm != "" && len(status.VMs) == 0 {
		return status, control.NotFound("list the VMs with: vhdrelay status", "there is no VM %q", vm)
	}
	return status, nil
}

// marker is the fs.Volumes of a store without a journal.
type marker struct {
	store *store
	mu    struct {
		sync.Mutex // held over opening an image
		files      map[fileID]*marked
	}
}

// marked is an image that is marked before its first change.
type marked struct {
	file *os.File // nil: it could not be opened
	err  error    // why it takes no mark; set by once
	once sync.Once
}

// Attach implements fs.Volumes. The image is held open: it may be renamed before its
// first change.
func (m *marker) Attach(path string, id fs.Identity) fs.Tracker {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := fileID{id.Dev, id.Ino}
	have := m.mu.files[key]
	if have == nil {
		have = &marked{}
		have.file, have.err = m.store.open(path, key)
		m.mu.files[key] = have
	}
	return have
}

// Renamed implements fs.Volumes.
func (m *marker) Renamed(string, string, fs.Identity) {}

// Removed implements fs.Volumes.
func (m *marker) Removed(string, fs.Identity) {}

// Closed implements fs.Volumes.
func (m *marker) Closed(string, fs.Identity) {}

func (m *marker) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, f := range m.mu.files {
		if f.file != nil {
			errs = append(errs, f.file.Close())
		}
	}
	m.mu.files = map[fileID]*marked{}
	return errors.Join(errs...)
}

// Begin implements fs.Tracker: only if the image takes no mark the change fails (I9).
func (f *marked) Begin(extent.Change) (extent.Pass, error) {
	f.once.Do(func() {
		if f.err == nil {
			f.err = markFile(f.file)
		}
	})
	return nil, f.err
}

// End implements fs.Tracker.
func (f *marked) End(extent.Change, extent.Pass, error) {}

func markFile(f *os.File) error {
	file, err := journal.OSFile(f)
	if err != nil {
		return err
	}
	if err := file.SetSuspectMark(); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

var (
	_ fs.Volumes = (*marker)(nil)
	_ fs.Tracker = (*marked)(nil)
)
