package rig

import (
	"errors"
	iofs "io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// blockUnit is the unit of st_blocks (stat(2)).
const blockUnit = 512

// Usage is what the files below dir take on the disk, as du says it. Files that vanish meanwhile are no error.
func Usage(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(path string, _ iofs.DirEntry, err error) error {
		if errors.Is(err, iofs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			total += st.Blocks * blockUnit
		}
		return nil
	})
	return total, err
}

// Allocated is what one file takes on the disk.
func Allocated(path string) (int64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Blocks * blockUnit, err
}
