package badgerkv

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// What the names of Badger's logs end in.
const (
	memtableLog = ".mem"
	valueLogExt = ".vlog"
)

// removeEmptyLogs removes what a crash leaves of a log that is made or removed: Badger creates one and then makes it grow,
// and cuts one that it is done with to nothing and then removes it. A process that dies between the two leaves an empty file.
// It holds nothing, and never held more than a synced table has; but Badger takes it for one that it has just made itself,
// and does not open ("while opening memtables … Create a new file"). The directory's lock is taken for that, as Badger takes
// it: an empty log of a running database is about to grow.
func removeEmptyLogs(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }() // the lock goes with it
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return &os.PathError{Op: "lock", Path: dir, Err: err}
	}
	logs, err := logsIn(dir, memtableLog, valueLogExt)
	if err != nil {
		return err
	}
	for _, path := range logs {
		st, err := os.Stat(path)
		if err == nil && st.Size() == 0 {
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// logsIn lists the paths of the logs in a directory.
func logsIn(dir string, exts ...string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var logs []string
	for _, e := range entries {
		if slices.Contains(exts, filepath.Ext(e.Name())) {
			logs = append(logs, filepath.Join(dir, e.Name()))
		}
	}
	return logs, nil
}
