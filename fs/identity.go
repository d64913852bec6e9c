package fs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Identify tells which file a path of the source means, as Attach will be told.
func Identify(path string) (Identity, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", path, err)
	}
	return Identity{Dev: st.Dev, Ino: st.Ino, Gen: generation(fd, st.Mode)}, nil
}
