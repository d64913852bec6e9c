package appliance

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/systemd"
)

// A mount outlives the process: the service manager has its connection, in two descriptors a store. The next process takes
// it over, and the kernel sends again what was not answered. See README.md, "When the process dies".

// Suffixes of the names under which the descriptors of a store are kept. Never change them: an older or newer build looks
// for them.
const (
	keptDevice = ".device"
	keptState  = ".state"
)

// keptName is a store's name as one of a descriptor: without colons and control characters.
func (s *store) keptName() string { return url.QueryEscape(s.conf.Name) }

// kept takes what the process before this one left of the store's mount; nil if nothing.
func (s *store) kept() *fs.Connection {
	device, state := s.app.stored[s.keptName()+keptDevice], s.app.stored[s.keptName()+keptState]
	delete(s.app.stored, s.keptName()+keptDevice)
	delete(s.app.stored, s.keptName()+keptState)
	if device == nil && state == nil {
		return nil
	}
	if device == nil || state == nil {
		s.letGo(device, state)
		return nil
	}
	return &fs.Connection{Device: device, State: state}
}

// letGo ends a mount of which one descriptor is kept and not the other: the one that is there would keep it alive, with
// nobody to answer, and whoever looks at the mount point would wait for ever.
func (s *store) letGo(kept ...*os.File) {
	s.log.Error("the service manager has one descriptor of the mount that the process before this one left, and not the other; who had files open sees I/O errors, and it is made afresh", "mount", s.conf.Mount, "code", "mount-damaged",
		"action", "report it with the log; restart the guests that see I/O errors")
	for _, f := range kept {
		if f != nil {
			f.Close()
		}
	}
	s.unkeep()
	if err := s.app.notify.Barrier(); err != nil {
		s.log.Warn("the service manager may keep a mount that is gone", "code", "not-forgotten", "cause", err, "action", "if the start says that the mount waits: systemctl stop vhdrelay, and start it")
	}
}

// keep gives the connection of a new mount to the manager, in place of an earlier one's.
func (s *store) keep(c *fs.Connection) error {
	s.unkeep()
	err := s.app.notify.Store(s.keptName()+keptState, c.State)
	if err == nil {
		err = s.app.notify.Store(s.keptName()+keptDevice, c.Device)
	}
	return err
}

// unkeep has the manager forget the mount: it is gone.
func (s *store) unkeep() {
	for _, suffix := range []string{keptDevice, keptState} {
		if err := s.app.notify.Unstore(s.keptName() + suffix); err != nil {
			s.log.Warn("the service manager keeps what is left of a mount", "code", "not-forgotten", "cause", err, "action", "none: the next start sees that it is dead")
		}
	}
}

// keepOption is for fs.Options: nil without a manager, so that nobody is warned of what is no fault.
func (s *store) keepOption() func(*fs.Connection) error {
	if s.app.notify.Manages() {
		return s.keep
	}
	return nil
}

// strangers handles what is left of mounts that the config does not know any more. An unused one goes; one with open files
// stays with the manager, for the operator to decide: its guests wait.
func (a *Appliance) strangers() {
	for name, f := range a.stored { // keptConfig is none
		if filepath.Ext(name) != keptState {
			continue
		}
		a.stranger(name[:len(name)-len(keptState)], f)
	}
	for _, f := range a.stored {
		f.Close()
	}
	a.stored = nil
}

func (a *Appliance) stranger(name string, state *os.File) {
	at, err := fs.Abandon(state)
	if errors.Is(err, fs.ErrBusy) || errors.Is(err, fs.ErrNewer) {
		a.log.Error("a store that the config does not have any more is mounted still and in use; its guests wait", "store", name, "mount", at, "code", "store-gone", "cause", err,
			"action", "put the store back into the config and restart, or give the guests up: umount -f "+at)
		return
	}
	a.log.Warn("the mount of a store that the config does not have any more is taken away", "store", name, "mount", at, "code", "store-gone", "cause", err)
	for _, suffix := range []string{keptDevice, keptState} {
		err = errors.Join(err, a.notify.Unstore(name+suffix))
	}
}

// handsOver tells whether the mounts go on after this process. They do unless the manager stops the unit for good: then
// nobody would come.
func (a *Appliance) handsOver() bool { return a.anyKept() && !systemd.Ends() }

// freeze leaves the mount to the next process: what changes files waits for it from now on.
func (s *store) freeze() error {
	s.leaving.Store(true)
	err := within(s.app.bounds.drain, func() error { s.srv.Freeze(); return nil })
	if err == nil {
		s.log.Info("store left to the next process; guests wait for it", "mount", s.conf.Mount)
	}
	return err
}

func (a *Appliance) anyKept() bool {
	for _, s := range a.stores {
		if s.srv != nil && s.srv.Kept() {
			return true
		}
	}
	return false
}
