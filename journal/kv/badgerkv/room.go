package badgerkv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// minRoom is what must be free, bytes, for the database to be written to or opened:
// a new log, and a table from the old one, several times over. Badger writes through
// mapped sparse files: one that meets a full disk is a SIGBUS, which ends the process
// and every guest's disk with it. So a full disk is an error before Badger sees it.
const minRoom = 64 << 20

// ErrNoRoom: the file system of the store is nearly full. It is an ENOSPC too.
var ErrNoRoom = errors.New("less than 64 MiB are free")

// room returns ErrNoRoom unless the directory's file system has space for what the
// database may write next. It does not promise that the space stays.
func room(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < minRoom {
		return fmt.Errorf("journal store %s: %d bytes are free: %w: %w", dir, free, ErrNoRoom, syscall.ENOSPC)
	}
	return nil
}

// reserve gives the logs of the memtables all the space of their mapping, so that
// writing to them meets no full disk. Where the file system cannot, room alone must do.
func reserve(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
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
