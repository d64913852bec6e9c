package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Abort takes the mount away although files are open: it is detached, and every
// request on it fails from now on (ENOTCONN). It returns when the last request
// is answered, so nothing changes a backing file afterwards.
func (s *Server) Abort(ctx context.Context) error {
	var st unix.Stat_t
	// The root's attributes may be cached, its device number always is.
	err := unix.Stat(s.mount, &st)
	if err != nil {
		return fmt.Errorf("abort %s: %w", s.mount, err)
	}
	control := filepath.Join("/sys/fs/fuse/connections", fmt.Sprint(unix.Minor(st.Dev)), "abort")
	if err := s.Detach(); err != nil {
		return err
	}
	if err := os.WriteFile(control, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("abort %s: %w", s.mount, err)
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("abort %s: requests are still running: %w", s.mount, ctx.Err())
	}
}
