package appliance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// Marks on the root of a store: extended attributes, or files of the hidden
// directory markDir where the file system has none.
const (
	markStoreID = "store"   // identity of the store, drawn once
	markSession = "session" // the journal's session that served it last
	attrPrefix  = "user.vhdrelay."
	markDir     = ".vhdrelay"
)

// claim takes the store for this process: one appliance a store. The lock goes
// with the process.
func (s *store) claim() error {
	f, err := lockDir(s.conf.Source)
	switch {
	case errors.Is(err, errLocked):
		return control.Refused("store-in-use", "stop the other vhdrelay, or give this one a source of its own",
			"store %s: another vhdrelay%s serves %s", s.conf.Name, holder(s.conf.Source), s.conf.Source)
	case errors.Is(err, os.ErrNotExist):
		return &control.Error{Code: "source-missing", Message: fmt.Sprintf("store %s: %v", s.conf.Name, err), Exit: control.ExitFailed, Err: err,
			Action: "mount or make the directory, or correct stores.source in the config"}
	case err != nil:
		return fmt.Errorf("store %s: %w", s.conf.Name, err)
	}
	s.lock = f
	if err := checkSource(s.conf); err != nil {
		return err
	}
	if err := checkWritable(s.conf); err != nil {
		return err
	}
	return s.identify()
}

// checkWritable refuses a source that nobody can write to.
func checkWritable(conf config.Store) error {
	var st unix.Statfs_t
	if err := unix.Statfs(conf.Source, &st); err != nil {
		return fmt.Errorf("store %s: %w", conf.Name, &os.PathError{Op: "statfs", Path: conf.Source, Err: err})
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return &control.Error{Code: "source-read-only", Message: fmt.Sprintf("store %s: %s is read-only", conf.Name, conf.Source), Exit: control.ExitFailed,
			Action: "mount it writable: guests could not write either", Err: syscall.EROFS}
	}
	return nil
}

// lockState takes the state directory for this process.
func lockState(dir string) (*dirLock, error) {
	f, err := lockDir(dir)
	if errors.Is(err, errLocked) {
		return nil, control.Refused("state-in-use", "stop the other vhdrelay, or give this one its own state_dir", "another vhdrelay%s works in %s", holder(dir), dir)
	}
	return f, err
}

// errLocked: another process, or another part of this one, has the directory.
var errLocked = errors.New("directory is locked")

// dirLock is a directory that is locked until it is closed.
type dirLock struct{ *os.File }

// Close unlocks before it closes: a child that this process is just making has the descriptor as well, until it runs its
// program, and would keep the lock as long.
func (l dirLock) Close() error {
	return errors.Join(unix.Flock(int(l.Fd()), unix.LOCK_UN), l.File.Close())
}

func lockDir(dir string) (*dirLock, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return &dirLock{f}, nil
}

// identify reads the store's id, or draws one that remember writes.
func (s *store) identify() error {
	id, err := readMark(s.conf.Source, markStoreID)
	if err != nil {
		return fmt.Errorf("store %s: its id: %w", s.conf.Name, err)
	}
	if s.fresh = id == ""; s.fresh {
		id = uuid.NewString()
	}
	s.id = id
	return nil
}

// reverted tells whether store and state directory have not been served together
// last: one of the two was put back to an older state. The store's mark is that of
// the run before this one, or, if that died before it was sure of its mark, of the
// run before that.
func (s *store) reverted(j *journal.Journal) (bool, error) {
	served, err := readMark(s.conf.Source, markSession)
	if err != nil {
		return false, fmt.Errorf("store %s: its session: %w", s.conf.Name, err)
	}
	previous, _, published := j.Session()
	if previous == "" {
		return false, nil // this state directory believes nothing yet
	}
	trusted := served == "" || served == previous || (!published && served == j.Ancestor())
	return !trusted, nil
}

// knownStore is the journal's document of a store.
type knownStore struct {
	ID string `json:"id"`
}

// exchanged tells whether the source is not the one that this state directory
// served under the store's name: another directory, or one from before its first
// start. An empty one without an id is refused: the file system that belongs there is
// not mounted, and serving it would take every VM's disks away.
func (s *store) exchanged(j *journal.Journal) (bool, error) {
	var known knownStore
	found, err := j.Load(s.document(), &known)
	if err != nil || !found || known.ID == s.id {
		return false, err
	}
	if s.fresh {
		empty, err := s.empty()
		if err != nil {
			return false, err
		}
		if empty {
			return false, control.Refused("source-empty", "mount the file system that belongs there; if the store is to begin anew, give it another name in the config",
				"store %s: %s has no image and no mark of the store that was served from it", s.conf.Name, s.conf.Source)
		}
	}
	return true, nil
}

// empty tells whether the source has no image.
func (s *store) empty() (bool, error) {
	found := false
	err := s.walk(func(rel, _ string) error {
		found = found || image.IsImageName(rel)
		return nil
	})
	return !found, err
}

// remember makes the source the one of its name.
func (s *store) remember(j *journal.Journal) error {
	if s.fresh {
		if err := writeMark(s.conf.Source, markStoreID, s.id); err != nil {
			return fmt.Errorf("store %s: its id: %w", s.conf.Name, err)
		}
		s.fresh = false
	}
	return j.Save(s.document(), knownStore{s.id})
}

func (s *store) document() string { return "appliance/store/" + s.conf.Name }

func (s *store) publish(session string) error {
	if err := writeMark(s.conf.Source, markSession, session); err != nil {
		return fmt.Errorf("store %s: its session: %w", s.conf.Name, err)
	}
	return nil
}

func readMark(dir, name string) (string, error) {
	buf := make([]byte, 128)
	n, err := unix.Getxattr(dir, attrPrefix+name, buf)
	switch {
	case err == nil:
		return string(buf[:n]), nil
	case errors.Is(err, unix.ENODATA):
		return "", nil
	case !errors.Is(err, unix.ENOTSUP):
		return "", &os.PathError{Op: "getxattr", Path: dir, Err: err}
	}
	data, err := os.ReadFile(filepath.Join(dir, markDir, name))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(data)), err
}

func writeMark(dir, name, value string) error {
	err := unix.Setxattr(dir, attrPrefix+name, []byte(value), 0)
	if errors.Is(err, unix.ENOTSUP) {
		return writeMarkFile(dir, name, value)
	}
	if err != nil {
		return &os.PathError{Op: "setxattr", Path: dir, Err: err}
	}
	return syncDir(dir)
}

func writeMarkFile(dir, name, value string) error {
	if err := os.Mkdir(filepath.Join(dir, markDir), 0o700); err != nil && !errors.Is(err, syscall.EEXIST) {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, markDir, name), []byte(value+"\n"))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
