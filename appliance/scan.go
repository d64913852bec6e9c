package appliance

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
)

// scan attaches every image that is there, before anybody can write to it.
func (s *store) scan() error {
	err := s.walk(func(rel, full string) error {
		if !image.IsImageName(rel) {
			return nil
		}
		id, err := fs.Identify(full)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		s.notice(rel, id)
		return nil
	})
	return errors.Join(err, s.survey())
}

// survey finds the files whose format is served but not protected. Nobody tells of
// them when they come and go, so it is repeated.
func (s *store) survey() error {
	var found []string
	err := s.walk(func(rel, _ string) error {
		if image.IsUnsupportedName(rel) {
			found = append(found, rel)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.unsupported = found
	return nil
}

// walk visits every regular file of the source's own file system: what is mounted
// inside is not served.
func (s *store) walk(visit func(rel, full string) error) error {
	var dev uint64
	return filepath.WalkDir(s.conf.Source, func(full string, d iofs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) && full != s.conf.Source {
			return nil // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("look through %s: %w", s.conf.Source, err)
		}
		rel, err := filepath.Rel(s.conf.Source, full)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return s.enter(full, rel, d, &dev)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		return visit(filepath.ToSlash(rel), full)
	})
}

// enter refuses directories of another device than the source's, which it notes first.
func (s *store) enter(full, rel string, d iofs.DirEntry, dev *uint64) error {
	info, err := d.Info()
	if errors.Is(err, os.ErrNotExist) {
		return filepath.SkipDir
	}
	if err != nil {
		return fmt.Errorf("look through %s: %w", full, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if rel == "." {
		*dev = st.Dev
	}
	if st.Dev != *dev {
		return filepath.SkipDir
	}
	return nil
}

// reason is what the status says of an image without a tracker.
func (n note) reason() control.Reason {
	const action = "mend the cause, then restart vhdrelay: the image is compared whole"
	r := critical(health.ImageUntracked, action, "%s is served untracked: %v", n.path, n.cause)
	if n.refused {
		r = critical(health.ImageRefused, action, "%s can be neither tracked nor marked; writes to it fail: %v", n.path, n.cause)
	}
	r.Since = n.since
	return r
}

// untrackedOf lists the VM's images that are served without a tracker, and what is
// wrong with the store around them.
func (s *store) untrackedOf(vm string) []control.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	var reasons []control.Reason
	for _, n := range s.mu.untracked {
		if owner, _, _ := belongs(s.conf, n.path); owner == vm {
			reasons = append(reasons, n.reason())
		}
	}
	return append(reasons, s.hostReasonsLocked(vm)...)
}

// untrackedVMs are the VMs that have such images.
func (s *store) untrackedVMs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, n := range s.mu.untracked {
		owner, _, _ := belongs(s.conf, n.path)
		names = append(names, owner)
	}
	return names
}

// unsupportedOf lists the files of a VM that are served but not protected.
func (s *store) unsupportedOf(vm string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var paths []string
	for _, path := range s.mu.unsupported {
		if owner, _, ok := belongs(s.conf, path); ok && owner == vm {
			paths = append(paths, path)
		}
	}
	return paths
}

// disksOf lists the tracked images of a VM.
func (s *store) disksOf(m *machine) []*attached {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*attached
	for _, a := range s.mu.images {
		if a.vm == m {
			all = append(all, a)
		}
	}
	return all
}

// tracks tells whether the image is a disk still.
func (s *store) tracks(a *attached) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, have := range s.mu.images {
		if have == a {
			return true
		}
	}
	return false
}

// distrust makes every image of the store suspect as a whole.
func (s *store) distrust(reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.mu.images {
		if err := a.disk.SetSuspect(reason); err != nil {
			return fmt.Errorf("%s: %w", a.at(), err)
		}
	}
	return nil
}

// reap is reapLocked.
func (s *store) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reapLocked()
}
