package badgerkv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// minRoom is what must be free, bytes, for the database to be written to or opened:
// a new log, and a table from the old one, several times over. Badger writes through
// mapped sparse files: one that meets a full disk is a SIGBUS, which ends the process
// and every guest's disk with it. So a full disk is an error before Badger sees it.
const minRoom = 64 << 20

// ErrNoRoom: the file system of the store is nearly full. It is an ENOSPC too.
var ErrNoRoom = errors.New("less than 64 MiB are free")

// closeWait bounds the close of a database: one whose disk has failed tries to write
// its table for ever.
const closeWait = 5 * time.Second

// ErrClosing: the database cannot write what it has to and does not close; its disk
// must come back, or the process must end.
var ErrClosing error = closingError{}

type closingError struct{}

func (closingError) Error() string { return "the journal store does not close" }

// ErrorCode and ErrorAction are for the operator (I12).
func (closingError) ErrorCode() string { return "journal-stuck" }

// ErrorAction is the next action.
func (closingError) ErrorAction() string {
	return "mend the disk of the state directory; if it was mounted anew, restart vhdrelay"
}

// shutLocked closes the database. After ErrClosing the caller may ask again. The
// caller holds mu for writing.
func (s *Store) shutLocked() error {
	if s.mu.closing == nil {
		if s.mu.db == nil {
			return nil
		}
		done := make(chan error, 1)
		go func(db *badger.DB) { done <- db.Close() }(s.mu.db)
		s.mu.db, s.mu.closing = nil, done
		timer := time.NewTimer(s.closeWait)
		defer timer.Stop()
		select {
		case err := <-done:
			s.mu.closing = nil
			return err
		case <-timer.C:
			return ErrClosing
		}
	}
	select {
	case err := <-s.mu.closing:
		s.mu.closing = nil
		return err
	default:
		return ErrClosing
	}
}

// room returns ErrNoRoom, or EROFS, unless the directory's file system has space for what the
// database may write next. It does not promise that the space stays.
func room(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return &os.PathError{Op: "write", Path: dir, Err: syscall.EROFS}
	}
	if free := int64(st.Bavail) * st.Bsize; free < minRoom {
		return fmt.Errorf("journal store %s: %d bytes are free: %w: %w", dir, free, ErrNoRoom, syscall.ENOSPC)
	}
	return nil
}

const (
	discardFile = "DISCARD" // Badger's statistics of its value log
	discardSize = 1 << 20   // as Badger maps it, bytes
)

// rehearse does first what Badger ends the process over if it fails in it while it opens: listing the directory, and
// opening and mapping its statistics. Elsewhere it returns its errors, or tries again.
func rehearse(dir string) error {
	if _, err := os.ReadDir(dir); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, discardFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, discardSize)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil
	}
	if err != nil {
		err = &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return errors.Join(err, f.Close())
}

// reserve gives the logs of the memtables all the space of their mapping, so that
// writing to them meets no full disk. Where the file system cannot, room alone must do.
func reserve(dir string) error {
	logs, err := logsIn(dir, memtableLog)
	if err != nil {
		return err
	}
	for _, path := range logs {
		if err := reserveFile(path); err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
			return fmt.Errorf("reserve space: %w", err)
		}
	}
	return nil
}

func reserveFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // flushed meanwhile
	}
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 2*memtable)
	if err != nil {
		err = &os.PathError{Op: "fallocate", Path: path, Err: err}
	}
	return errors.Join(err, f.Close())
}
