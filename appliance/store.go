package appliance

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// store is one served directory: it finds the images in it, gives each its
// tracker, and brings each into the pipeline of its VM.
type store struct {
	app  *Appliance
	conf config.Store
	log  *slog.Logger
	id   string // of the store, kept on its root
	lock *os.File
	srv  *fs.Server

	mu struct {
		sync.Mutex  // held over the local I/O of adding a disk, as Attach allows
		images      map[fileID]*attached
		unsupported map[string]string // path → why it is served but not protected
		closed      bool
	}
}

// fileID is an image file as long as it is open here.
type fileID struct{ dev, ino uint64 }

// attached is a tracked image.
type attached struct {
	path string
	file *os.File
	disk *journal.Disk
	vm   *machine
}

func newStore(app *Appliance, conf config.Store) *store {
	s := &store{app: app, conf: conf, log: app.log.With("store", conf.Name)}
	s.mu.images = map[fileID]*attached{}
	s.mu.unsupported = map[string]string{}
	return s
}

// scan attaches every image that is there before anybody can write to it.
func (s *store) scan() error {
	return filepath.WalkDir(s.conf.Source, func(full string, d iofs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("look through %s: %w", s.conf.Source, err)
		}
		rel, err := filepath.Rel(s.conf.Source, full)
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if image.IsUnsupportedName(rel) {
			s.noteUnsupported(rel, "format is not protected")
		}
		if !image.IsImageName(rel) {
			return nil
		}
		id, err := fs.Identify(full)
		if err != nil {
			return err
		}
		s.Attach(filepath.ToSlash(rel), id)
		return nil
	})
}

// Attach implements fs.Volumes. The guest comes first (I9): an image that cannot
// be tracked is marked on itself, durably, and served; only one that takes no mark
// is refused to writers.
func (s *store) Attach(path string, id fs.Identity) fs.Tracker {
	if image.IsUnsupportedName(path) {
		s.noteUnsupported(path, "format is not protected")
	}
	if !image.IsImageName(path) {
		return nil
	}
	a, err := s.attach(path, id)
	if err != nil {
		return s.untracked(path, err)
	}
	if a == nil {
		return nil
	}
	return a.disk
}

// untracked serves an image without its tracker.
func (s *store) untracked(path string, cause error) fs.Tracker {
	err := s.markSuspect(path)
	action := "mend the cause, then restart vhdrelay: the image is compared whole"
	if err != nil {
		s.log.Error("image can be neither tracked nor marked; writes to it are refused", "path", path, "code", "image-refused", "cause", errors.Join(cause, err), "action", action)
		return refusing{cause}
	}
	s.log.Error("image is served untracked", "path", path, "code", "image-untracked", "cause", cause, "action", action)
	s.noteUnsupported(path, cause.Error())
	return nil
}

// markSuspect leaves the mark that makes the next start compare the whole image.
func (s *store) markSuspect(path string) error {
	f, err := os.OpenFile(filepath.Join(s.conf.Source, path), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	file, err := journal.OSFile(f)
	if err != nil {
		return err
	}
	return file.SetSuspectMark()
}

// refusing fails every change: what cannot be tracked must not happen (I9).
type refusing struct{ err error }

func (r refusing) Begin(extent.Change) (extent.Pass, error) { return nil, r.err }

func (r refusing) End(extent.Change, extent.Pass, error) {}

// attach finds or makes the disk of an image; nil if it is not to be tracked.
func (s *store) attach(path string, id fs.Identity) (*attached, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, errors.New("the appliance is stopping")
	}
	key := fileID{id.Dev, id.Ino}
	if have := s.mu.images[key]; have != nil {
		if have.path == path {
			return have, nil
		}
		if err := s.detachLocked(key); err != nil {
			return nil, err
		}
	}
	vm, disk, ok := belongs(s.conf, path)
	if !ok || !s.app.config().EffectiveReplication(vm).Tracking {
		return nil, nil
	}
	if old, found := s.findLocked(path); found {
		if err := s.detachLocked(old); err != nil {
			return nil, err
		}
	}
	a, err := s.addLocked(vm, disk, path, id)
	if err != nil {
		return nil, fmt.Errorf("track %s: %w", path, err)
	}
	s.mu.images[key] = a
	return a, nil
}

func (s *store) findLocked(path string) (fileID, bool) {
	for id, a := range s.mu.images {
		if a.path == path {
			return id, true
		}
	}
	return fileID{}, false
}

// addLocked opens the image beside the guest's own descriptors and starts its tracking.
func (s *store) addLocked(vmName, diskName, path string, id fs.Identity) (*attached, error) {
	m, err := s.app.machine(s, vmName)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.conf.Source, path), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	a := &attached{path: path, file: f, vm: m}
	if err := a.start(diskName, id); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.log.Info("image tracked", "path", path, "vm", vmName)
	return a, nil
}

func (a *attached) start(name string, id fs.Identity) error {
	file, err := journal.OSFile(a.file)
	if err != nil {
		return err
	}
	a.disk, err = a.vm.log.AddDisk(name, file, journal.Identity{Dev: id.Dev, Ino: id.Ino, Gen: id.Gen}, journal.DiskOptions{})
	if err != nil {
		return err
	}
	pipeline := a.vm.pipeline
	a.disk.OnEvict(func(r []extent.Range[extent.FileBlock]) error { return pipeline.Forget(a.disk.ID(), r) })
	err = pipeline.AddDisk(source{a.disk, a.file}, a.probe)
	a.vm.resync.wake()
	return err
}

// probe reads the image's headers as they are now.
func (a *attached) probe() (image.Info, error) {
	st, err := a.file.Stat()
	if err != nil {
		return image.Info{}, err
	}
	return image.Probe(a.path, a.file, st.Size())
}

func (s *store) detachLocked(key fileID) error {
	a := s.mu.images[key]
	delete(s.mu.images, key)
	a.vm.pipeline.RemoveDisk(a.disk.ID())
	if err := a.vm.log.RemoveDisk(a.disk); err != nil {
		return fmt.Errorf("stop tracking %s: %w", a.path, err)
	}
	s.log.Info("image no longer tracked", "path", a.path, "vm", a.vm.name)
	return a.file.Close()
}

// Renamed implements fs.Volumes: the new name is attached when it is seen; a name
// that is no image's ends the tracking with the last close.
func (s *store) Renamed(oldPath, newPath string, id fs.Identity) {
	if image.IsImageName(newPath) {
		return // Attach is asked with the new name
	}
	s.Removed(oldPath, id)
}

// Removed implements fs.Volumes.
func (s *store) Removed(path string, id fs.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.unsupported, path)
	key := fileID{id.Dev, id.Ino}
	if a := s.mu.images[key]; a == nil || a.path != path {
		return
	}
	if err := s.detachLocked(key); err != nil {
		s.log.Warn("removed image", "path", path, "cause", err)
	}
}

func (s *store) noteUnsupported(path, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.unsupported[path] = why
}

// unprotected lists the files of a VM that are served but not protected.
func (s *store) unprotected(vm string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var paths []string
	for path := range s.mu.unsupported {
		if owner, _, ok := belongs(s.conf, path); ok && owner == vm {
			paths = append(paths, path)
		}
	}
	return paths
}

// mount serves the store; every image in it is attached already.
func (s *store) mount() error {
	srv, err := fs.Mount(fs.Options{
		Name: s.conf.Name, Source: s.conf.Source, Mount: s.conf.Mount, Volumes: s, Log: s.log, AllowOther: true,
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", s.conf.Name, err)
	}
	s.srv = srv
	s.log.Info("store mounted", "source", s.conf.Source, "mount", s.conf.Mount)
	return nil
}

// unmount ends the serving. Images that are still open are cut off, for a service
// that is told to stop must stop; their guests see I/O errors.
func (s *store) unmount(ctx context.Context) error {
	if s.srv == nil {
		return nil
	}
	err := s.srv.Unmount()
	if err == nil {
		return nil
	}
	s.log.Warn("store is in use and is detached; open images see I/O errors from now on", "code", "unmount-busy", "open", s.srv.OpenFiles(), "cause", err,
		"action", "stop the virtual machines before the appliance")
	return s.srv.Abort(ctx)
}

// close ends the tracking; nothing can write any more.
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	var errs []error
	for _, a := range s.mu.images {
		errs = append(errs, a.file.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
