package fs

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Abort takes the mount away although files are open: every request on it fails from now on (ENOTCONN), and it is
// detached. It returns when the last request is answered, so nothing changes a backing file afterwards; or with ctx's
// error, and then something may.
func (s *Server) Abort(ctx context.Context) error {
	// MNT_FORCE ends the connection even where it cannot unmount; unlike the abort file in sysfs it is always there.
	switch err := unix.Unmount(s.mount, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL:
	case unix.EBUSY:
		if err := s.Detach(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("abort %s: %w", s.mount, err)
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("abort %s: requests are still running: %w", s.mount, ctx.Err())
	}
}
