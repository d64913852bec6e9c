package fs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Abandon takes a mount away that an earlier process left, unless files are open there (ErrBusy), and says where it was.
// It asks nothing of the mount: nobody answers.
func Abandon(state *os.File) (mount string, err error) {
	head := make([]byte, headerSize)
	if _, err := state.ReadAt(head, 0); err != nil {
		return "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	have, err := decodeHeader(head)
	if err != nil {
		return "", err
	}
	return have.Mount, have.abandon()
}

func (f facts) abandon() error {
	if there, err := f.mounted(); err != nil || !there {
		return err
	}
	switch err := unix.Unmount(f.Mount, unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL:
		return nil
	case unix.EBUSY:
		return fmt.Errorf("unmount %s: %w", f.Mount, ErrBusy)
	default:
		return fmt.Errorf("unmount %s: %w", f.Mount, err)
	}
}

// mounted says whether the mount is what one sees at its place.
func (f facts) mounted() (bool, error) {
	at, err := mountsAt(f.Mount)
	return len(at) > 0 && at[len(at)-1].device == f.Device, err
}

// fits compares the mount that is there with the one that is wanted. ErrAborted: it is gone, or nobody used it and it was
// taken away.
func (f facts) fits(opts Options, device *os.File) error {
	if !alive(device) {
		return ErrAborted
	}
	why := f.unlike(opts)
	if why == nil {
		return nil
	}
	if err := f.abandon(); err != nil {
		return fmt.Errorf("%w: %w: %w", ErrOther, why, err)
	}
	return fmt.Errorf("%w: %w", ErrAborted, why)
}

// unlike says what is another than wanted.
func (f facts) unlike(opts Options) error {
	var st unix.Stat_t
	if err := unix.Stat(opts.Source, &st); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if f.Mount != opts.Mount {
		return fmt.Errorf("it is at %s, not at %s", f.Mount, opts.Mount)
	}
	if st.Dev != f.Dev || st.Ino != f.Ino {
		return fmt.Errorf("its source was another directory than %s", opts.Source)
	}
	there, err := f.mounted()
	if err == nil && !there {
		err = errors.New("it is not to be seen there any more")
	}
	return err
}
