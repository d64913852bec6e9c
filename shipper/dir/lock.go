package dir

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// Poll intervals while another holds a lock. flock(2) itself could block, but
// then no context would end it.
const (
	pollFirst = time.Millisecond
	pollMax   = 50 * time.Millisecond
)

// lock takes an flock on the file, exclusive or shared, between processes and,
// since every call opens the file anew, between goroutines. The returned
// function lets go. create: make the file if it is missing.
func (d *Dir) lock(ctx context.Context, rel string, exclusive, create bool) (unlock func(), err error) {
	flag, how := os.O_RDONLY, unix.LOCK_SH
	if exclusive {
		flag, how = os.O_RDWR, unix.LOCK_EX // over NFS an exclusive lock needs a writable file
	}
	if create {
		flag = os.O_RDWR | os.O_CREATE
	}
	for {
		f, err := d.root.OpenFile(rel, flag, defaultMode)
		if err != nil {
			return nil, absent(err)
		}
		if err := flock(ctx, f, how); err != nil {
			_ = f.Close() // nothing was written
			return nil, err
		}
		if d.isStill(rel, f) {
			return func() { _ = f.Close() }, nil // closing gives the lock back
		}
		_ = f.Close() // the file was removed while we waited: it locks nothing
	}
}

func flock(ctx context.Context, f *os.File, how int) error {
	for wait := pollFirst; ; wait = min(2*wait, pollMax) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR):
			continue
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return err
		case !retry.Sleep(ctx, wait):
			return ctx.Err()
		}
	}
}

func (d *Dir) isStill(rel string, f *os.File) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := d.root.Stat(rel)
	return err == nil && os.SameFile(mine, there)
}
