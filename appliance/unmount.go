package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
)

// holdersShown bounds how many holders of open files a message names.
const holdersShown = 5

// Unmount implements control.Backend.
func (a *Appliance) Unmount(ctx context.Context, name string, force bool) (control.Unmounted, error) {
	gone, found := control.Unmounted{Stores: []string{}}, false
	for _, s := range a.stores {
		if name != "" && name != s.conf.Name {
			continue
		}
		found = true
		if s.isUnmounted() {
			continue
		}
		if err := s.takeAway(ctx, force); err != nil {
			return gone, err
		}
		gone.Stores = append(gone.Stores, s.conf.Name)
		a.sealStore(s)
	}
	if !found {
		return gone, noStore(name)
	}
	return gone, nil
}

func noStore(name string) error {
	return control.NotFound("the config names the stores", "there is no store %q", name)
}

// sealStore ships what changed until its store was unmounted.
func (a *Appliance) sealStore(s *store) {
	s.look()
	for _, m := range a.machines() {
		if m.store == s {
			m.pipeline.SealSoon()
		}
	}
}

// takeAway unmounts the store on demand.
func (s *store) takeAway(ctx context.Context, force bool) error {
	s.leaving.Store(true)
	err := s.srv.Unmount()
	if errors.Is(err, fs.ErrBusy) && force {
		ctx, cancel := context.WithTimeout(ctx, s.app.bounds.drain)
		defer cancel()
		err = s.srv.Abort(ctx)
	}
	if err == nil {
		s.unkeep()
		s.log.Warn("store unmounted on demand; it is served again after a restart", "mount", s.conf.Mount, "force", force)
		return nil
	}
	s.leaving.Store(false)
	if errors.Is(err, fs.ErrBusy) {
		return control.Refused("store-busy", "stop these first, or use --force: they see I/O errors then", "store %s: files are open: %s", s.conf.Name, s.inUse())
	}
	return fmt.Errorf("store %s: %w", s.conf.Name, err)
}

// inUse names the open files of a store with the processes that have them, as far as
// they show.
func (s *store) inUse() string {
	holders, err := fs.Holders(s.conf.Mount)
	if err != nil {
		s.log.Debug("processes cannot be listed", "cause", err)
	}
	var who []string
	for _, h := range holders {
		who = append(who, fmt.Sprintf("%s (%s)", h.Path, process(h.PID)))
	}
	if len(who) == 0 {
		who = s.srv.OpenFiles() // by the kernel, another name space, or a process that has ended meanwhile
	}
	if more := len(who) - holdersShown; more > 0 {
		who = append(who[:holdersShown:holdersShown], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(who, ", ")
}

// ClearMounts takes away what a crashed appliance left mounted, of the store of that
// name or of all for "". With release the mount points are made usable again. A store
// that an appliance serves is refused.
func ClearMounts(conf *config.Config, name string, release bool) (control.Unmounted, error) {
	gone, found := control.Unmounted{Stores: []string{}}, false
	for _, c := range conf.Stores {
		if name != "" && name != c.Name {
			continue
		}
		found = true
		dead, err := fs.Dead(c.Mount)
		if err == nil && dead {
			err = fs.DetachDead(c.Mount, slog.New(slog.DiscardHandler))
			gone.Stores = append(gone.Stores, c.Name)
		}
		if errors.Is(err, fs.ErrSilent) {
			return gone, control.Refused("mount-waits", waitsAction(c.Mount), "store %s: %v", c.Name, err)
		}
		if err == nil && release {
			err = releaseMountPoint(c)
		}
		if err != nil {
			return gone, fmt.Errorf("store %s: %w", c.Name, err)
		}
	}
	if !found {
		return gone, noStore(name)
	}
	return gone, nil
}

func releaseMountPoint(c config.Store) error {
	served, err := fs.Served(c.Mount)
	if err != nil {
		return err
	}
	if served {
		return control.Refused("store-in-use", "stop the vhdrelay that serves it first", "store %s is mounted at %s", c.Name, c.Mount)
	}
	return fs.ReleaseMountPoint(c.Mount)
}
