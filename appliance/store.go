package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
)

// store is one served directory: it finds the images in it, gives each its
// tracker, and brings each into the pipeline of its VM.
//
// Lock order: store.mu, then Appliance.mu; never the other way round.
type store struct {
	app     *Appliance
	conf    config.Store
	log     *slog.Logger
	id      string // of the store, kept on its root
	fresh   bool   // the id was drawn at this start and is not on the root yet
	lock    *dirLock
	srv     *fs.Server
	leaving atomic.Bool // we unmount it ourselves
	watcher watcher
	volumes fs.Volumes   // nil: the store itself
	pace    *resync.Pace // shared by the comparisons of its disks
	order   order        // of what the mount tells

	mu struct {
		sync.Mutex  // held over the local I/O of adding a disk, as Attach allows
		images      map[fileID]*attached
		gone        []*attached        // no disks any more; an epoch may still read them
		untracked   map[fileID]note    // served without a tracker
		chains      map[string]lineage // of differencing images, by where they lie
		unsupported []string           // paths of files whose format is served but not protected
		moved       map[string]string  // by VM: where an image of it went that is another VM's now
		host        hostFaults
		closed      bool
	}
}

// fileID is an image file as long as it is open here.
type fileID struct{ dev, ino uint64 }

// attached is a tracked image.
type attached struct {
	path atomic.Pointer[string] // of the disk: a file that is renamed and cannot be followed stays the disk it was
	now  string                 // where it lies now
	was  []formerPath           // where it lay lately
	file *os.File
	disk *journal.Disk
	vm   *machine

	foreign   atomic.Bool // another process has it open for writing beside the mount: no epoch is a state of the VM
	doubts    atomic.Int64
	writer    string // who had, for people; guarded by store.mu, as are
	writerPID int    // its id
	doubt     string // why it was last doubted
}

// at is the path the image is a disk under.
func (a *attached) at() string { return *a.path.Load() }

// note is why an image has no tracker.
type note struct {
	path    string
	cause   error
	refused bool // writes to it fail
	since   time.Time
}

func newStore(app *Appliance, conf config.Store) *store {
	s := &store{app: app, conf: conf, log: app.log.With("store", conf.Name), pace: resync.NewPace(0, 0)}
	s.mu.images, s.mu.untracked, s.mu.moved = map[fileID]*attached{}, map[fileID]note{}, map[string]string{}
	return s
}

// attach makes the tracker of an image, if it is to have one.
func (s *store) attach(path string, id fs.Identity) fs.Tracker {
	if !image.IsImageName(path) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fileID{id.Dev, id.Ino}
	delete(s.mu.untracked, key)
	a, err := s.attachLocked(path, id)
	if err != nil {
		return s.untrackedLocked(path, key, err)
	}
	if a == nil {
		return nil
	}
	return timed{a.disk, s.pace}
}

// untrackedLocked serves an image without its tracker.
func (s *store) untrackedLocked(path string, key fileID, cause error) fs.Tracker {
	n := note{path: path, cause: cause, since: s.app.now()}
	if err := s.markSuspect(path, key); err != nil {
		n.cause, n.refused = errors.Join(cause, err), true
	}
	s.mu.untracked[key] = n
	r := n.reason()
	s.log.Error(r.Message, "code", r.Code, "action", r.Action)
	if n.refused {
		return refusing{n.cause}
	}
	return nil
}

// markSuspect leaves the mark that makes the next start compare the whole image.
func (s *store) markSuspect(path string, key fileID) error {
	f, err := s.open(path, key)
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

// open opens an image beside the guest's own descriptors. A path may by now lead
// to another file: it was renamed meanwhile.
func (s *store) open(path string, key fileID) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.conf.Source, path), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if is, err := identityOf(f); err != nil || is != key {
		return nil, errors.Join(fmt.Errorf("%s is another file by now", path), err, f.Close())
	}
	return f, nil
}

func identityOf(f *os.File) (fileID, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return fileID{}, err
	}
	var st unix.Stat_t
	controlErr := conn.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
	return fileID{st.Dev, st.Ino}, errors.Join(controlErr, err)
}

// refusing fails every change: what cannot be tracked must not happen (I9).
type refusing struct{ err error }

func (r refusing) Begin(extent.Change) (extent.Pass, error) { return nil, r.err }

func (r refusing) End(extent.Change, extent.Pass, error) {}

// attachLocked finds or makes the disk of an image; nil if it is not to be tracked.
func (s *store) attachLocked(path string, id fs.Identity) (*attached, error) {
	if s.mu.closed {
		return nil, errors.New("the appliance is stopping")
	}
	key := fileID{id.Dev, id.Ino}
	if have := s.mu.images[key]; have != nil {
		if have.at() == path || s.leadsTo(have.at(), key) { // the second: a hard link made behind our back
			have.now = path
			return have, nil
		}
		s.detachLocked(key, "it has another name")
	}
	if old, found := s.findLocked(path); found {
		s.replaceLocked(old)
	}
	if !s.wants(path) {
		s.leaveOut(path, key)
		return nil, nil
	}
	if !utf8.ValidString(path) {
		return nil, errName
	}
	vm, disk, _ := belongs(s.conf, path)
	a, err := s.addLocked(vm, disk, path, id)
	if err != nil {
		return nil, fmt.Errorf("track %s: %w", path, err)
	}
	s.mu.images[key] = a
	return a, nil
}

// errName: records are JSON, which has no other names. Two that differ there only would
// be one disk.
var errName = errors.New("its name is not UTF-8, and would not come back from a recovery point: rename it at the mount")

// leaveOut serves an image that the config, or an operator, leaves out. It is marked all
// the same: its VM may come back in a boot that knows nothing of what was written in this one.
func (s *store) leaveOut(path string, key fileID) {
	s.log.Info("image is not tracked: the config leaves it out, or its VM is unprotected", "path", path)
	if err := s.markSuspect(path, key); err != nil {
		s.log.Warn("an image that is left out takes no mark; if its VM comes back, compare it: vhdrelay resync", "path", path, "code", "mark-failed", "cause", err, "action", "none while it is left out")
	}
}

// wants tells whether the image is to be tracked: the config has it so, and no operator
// took its VM out.
func (s *store) wants(path string) bool {
	vm, _, ok := belongs(s.conf, path)
	return ok && s.app.config().EffectiveReplication(vm).Tracking && !s.app.isUnprotected(vm)
}

// leadsTo tells whether the path is a name of the file.
func (s *store) leadsTo(path string, key fileID) bool {
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(s.conf.Source, path), &st)
	return err == nil && fileID{st.Dev, st.Ino} == key
}

func (s *store) findLocked(path string) (fileID, bool) {
	for id, a := range s.mu.images {
		if a.at() == path {
			return id, true
		}
	}
	return fileID{}, false
}

// replaceLocked takes the name from the file that was attached with it. One that
// was renamed while it is open would be a disk under its new name from its last
// close on; until then nobody tracks it, and the status says so.
func (s *store) replaceLocked(key fileID) {
	a := s.mu.images[key]
	s.detachLocked(key, "another file has its name")
	if a.now != a.at() {
		s.mu.untracked[key] = note{path: a.now, since: s.app.now(),
			cause: fmt.Errorf("it was %s when it was opened, and another file has that name now", a.at())}
	}
}

// addLocked opens the image and starts its tracking.
func (s *store) addLocked(vmName, diskName, path string, id fs.Identity) (*attached, error) {
	m, err := s.app.machine(s, vmName)
	if err != nil {
		return nil, err
	}
	f, err := s.open(path, fileID{id.Dev, id.Ino})
	if err != nil {
		return nil, err
	}
	a := &attached{now: path, file: f, vm: m}
	a.path.Store(&path)
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
	a.disk, err = a.vm.log.AddDisk(name, file, journal.Identity{Dev: id.Dev, Ino: id.Ino, Gen: id.Gen})
	if err != nil {
		return err
	}
	pipeline := a.vm.pipeline
	a.disk.OnEvict(func(r []extent.Range[extent.FileBlock]) error { return pipeline.Forget(a.disk.ID(), r) })
	if err := pipeline.AddDisk(source{a.disk, a.file, &a.path, &a.foreign}, a.probe); err != nil {
		return errors.Join(err, a.vm.log.Withdraw(a.disk))
	}
	a.vm.resync.wake()
	return nil
}

// probe reads the image's headers as they are now.
func (a *attached) probe() (image.Info, error) {
	st, err := a.file.Stat()
	if err != nil {
		return image.Info{}, err
	}
	return formats.Probe(a.at(), a.file, st.Size())
}

// detachLocked ends an image's being a disk. Its guest may go on writing, and an
// epoch reading: the file is closed when nobody needs it.
func (s *store) detachLocked(key fileID, why string) {
	a := s.mu.images[key]
	delete(s.mu.images, key)
	a.vm.pipeline.RemoveDisk(a.disk.ID())
	if err := a.vm.log.Withdraw(a.disk); err != nil {
		s.log.Warn("records of a disk are left over; a disk of its name is compared whole", "path", a.at(), "vm", a.vm.name, "cause", err)
	}
	s.mu.gone = append(s.mu.gone, a)
	s.reapLocked()
	s.log.Info("image no longer tracked", "path", a.at(), "vm", a.vm.name, "why", why)
}

// reapLocked closes the files of former disks that no epoch reads any more.
func (s *store) reapLocked() {
	var kept []*attached
	for _, a := range s.mu.gone {
		if a.sealed() {
			kept = append(kept, a)
			continue
		}
		if err := a.file.Close(); err != nil {
			s.log.Warn("closing a former disk", "path", a.at(), "cause", err)
		}
	}
	s.mu.gone = kept
}

// removed tells whether the file has no name any more.
func (a *attached) removed() bool {
	st, err := a.file.Stat()
	if err != nil {
		return true
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0
}

// sealed tells whether an epoch that has not ended has the disk.
func (a *attached) sealed() bool {
	epoch := a.vm.log.Sealed()
	if epoch == nil {
		return false
	}
	for _, d := range epoch.Disks {
		if d.Disk == a.disk {
			return true
		}
	}
	return false
}

// mount serves the store; every image in it is attached already.
func (s *store) mount() error {
	volumes := s.volumes
	if volumes == nil {
		volumes = s
	}
	s.order.patience.Store(int64(journal.DefaultActivationTimeout))
	srv, err := fs.Mount(fs.Options{
		Version: Version, Keep: s.keepOption(), Kept: s.kept(),
		Name: s.conf.Name, Source: s.conf.Source, Mount: s.conf.Mount, Volumes: volumes, Log: s.log, AllowOther: true, Observe: s.app.metrics.Guest,
	})
	if err != nil {
		return mountError(s.conf, err)
	}
	s.mu.Lock() // the watch of the source runs already
	s.srv = srv
	s.mu.Unlock()
	if srv.Adopted() {
		s.log.Info("store taken over from the process before this one; guests go on", "source", s.conf.Source, "mount", s.conf.Mount)
		return nil
	}
	s.log.Info("store mounted", "source", s.conf.Source, "mount", s.conf.Mount)
	return nil
}

// watch returns an error when the mount is gone and we did not take it away: a
// restart brings it back.
func (s *store) watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.srv.Done():
	}
	s.unkeep()
	if s.leaving.Load() {
		return nil
	}
	return fmt.Errorf("store %s: %s was unmounted from outside", s.conf.Name, s.conf.Mount)
}

// seal refuses every image from now on: one that is asked for all the same is
// marked on itself.
func (s *store) seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
}

// close closes what the store holds; nothing can write any more.
func (s *store) close() error {
	s.watcher.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	var errs []error
	for _, a := range s.mu.images {
		errs = append(errs, a.file.Close())
	}
	for _, a := range s.mu.gone {
		errs = append(errs, a.file.Close())
	}
	s.mu.images, s.mu.gone = nil, nil
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	s.lock = nil
	return errors.Join(errs...)
}
