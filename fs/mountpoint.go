package fs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Reasons why a store is not mounted or unmounted; test with errors.Is.
var (
	ErrNested   = errors.New("source and mount point must not contain each other")
	ErrMounted  = errors.New("another file system is mounted there")
	ErrNotEmpty = errors.New("the mount point is not empty: files there would be hidden, or a VM ran beside the shim")
	ErrBusy     = errors.New("files are open")
	ErrSilent   = errors.New("the mount waits for a vhdrelay that takes it over: somebody keeps its connection, and nobody serves it")
)

// guardXattr on a mount point says that we made it immutable; its value is the mode it had before, in octal. We take
// only our own mark off.
const guardXattr = ownXattrs + "mountpoint"

// maxLinks is how many links in a row are followed, as in the kernel.
const maxLinks = 40

// fsImmutable is FS_IMMUTABLE_FL of FS_IOC_GETFLAGS and FS_IOC_SETFLAGS.
const fsImmutable = 0x10

// mounted is one line of /proc/self/mountinfo.
type mounted struct{ dir, fsType, device string } // device is major:minor

// mountsAt lists what is mounted on dir, an absolute clean path, the topmost last.
func mountsAt(dir string) ([]mounted, error) {
	return mountTable(func(at string) bool { return at == dir })
}

// MountsBelow lists the places inside dir, which need not be resolved, on which something is mounted.
func MountsBelow(dir string) ([]string, error) {
	dir, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	at, err := mountTable(func(at string) bool { return at != dir && within(at, dir) })
	var places []string
	for _, m := range at {
		places = append(places, m.dir)
	}
	return places, err
}

// Served says whether dir lies on a mount of ours: on disks that are served already.
func Served(dir string) (bool, error) {
	dir, err := resolve(dir)
	if err != nil {
		return false, err
	}
	above, err := mountTable(func(at string) bool { return within(dir, at) })
	var top mounted
	for _, m := range above {
		if len(m.dir) >= len(top.dir) { // the later of two at one place hides the other
			top = m
		}
	}
	return top.fsType == "fuse."+fsType, err
}

func mountTable(wanted func(dir string) bool) ([]mounted, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f, wanted)
}

func parseMounts(r io.Reader, wanted func(dir string) bool) ([]mounted, error) {
	var found []mounted
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 1 {
			continue
		}
		if at := unescape(fields[4]); wanted(at) {
			found = append(found, mounted{dir: at, fsType: rest[0], device: fields[2]})
		}
	}
	return found, lines.Err()
}

// unescape undoes the octal escapes of mountinfo: blank, tab, newline and backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// silence is how long a mount may take to answer statfs before it is ErrSilent.
const silence = 3 * time.Second

// Dead says whether a crashed daemon of ours left a mount at dir: one that answers ENOTCONN. It asks with statfs, because
// the kernel still knows the root's attributes for a while. ErrSilent: it does not answer, and who asks it for anything waits.
func Dead(dir string) (bool, error) {
	dir, err := resolveDead(dir)
	if err != nil {
		return false, fmt.Errorf("mount point: %w", err)
	}
	return dead(dir)
}

func dead(dir string) (bool, error) {
	at, err := mountsAt(dir)
	if err != nil || len(at) == 0 || at[len(at)-1].fsType != "fuse."+fsType {
		return false, err
	}
	answer := make(chan error, 1)
	go func() { // it may stay until somebody answers, or this process ends: what nobody has read can be killed
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	late := time.NewTimer(silence)
	defer late.Stop()
	select {
	case err := <-answer:
		return err == unix.ENOTCONN, nil
	case <-late.C:
		return false, fmt.Errorf("mount %s: %w", dir, ErrSilent)
	}
}

// DetachDead unmounts what Dead finds at dir, however often; anything else stays.
func DetachDead(dir string, log *slog.Logger) error {
	dir, err := resolveDead(dir)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	for {
		if is, err := dead(dir); err != nil || !is {
			return err
		}
		log.Warn("the mount of a daemon that is gone is detached", "mount", dir)
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("detach %s: %w", dir, err)
		}
	}
}

// resolveDead makes dir absolute and follows links, but asks nothing of the directory itself: it may be dead.
func resolveDead(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for range maxLinks {
		parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
		if err != nil {
			return "", err
		}
		dir = filepath.Join(parent, filepath.Base(dir))
		to, err := os.Readlink(dir)
		if err != nil {
			return dir, nil // no link: what else is wrong with it shows later
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(parent, to)
		}
		dir = to
	}
	return "", fmt.Errorf("%s: %w", dir, unix.ELOOP)
}

// checkMountPoint wants an empty directory with nothing mounted on it.
func checkMountPoint(dir string) error {
	at, err := mountsAt(dir)
	if err != nil {
		return err
	}
	if len(at) > 0 {
		return fmt.Errorf("mount point %s: %s: %w", dir, at[len(at)-1].fsType, ErrMounted)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("mount point %s: %w", dir, ErrNotEmpty)
	}
	return nil
}

// guard closes the directory below the mount: mode 0, and immutable where both the flag and the xattr that says it is
// ours can be had. While nothing is mounted, no VM can then create or open a disk there.
func guard(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	fd := int(f.Fd())
	flags, flagErr := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if flagErr == nil && flags&fsImmutable != 0 {
		return nil // ours from before, or the operator's
	}
	mode := strconv.FormatUint(uint64(st.Mode().Perm()), 8)
	marked := unix.Fsetxattr(fd, guardXattr, []byte(mode), unix.XATTR_CREATE)
	if err := f.Chmod(0); err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if flagErr == nil && (marked == nil || marked == unix.EEXIST) {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|fsImmutable) // best effort: mode 0 stops all but root
	}
	return nil
}

// ReleaseMountPoint gives a mount point back that Mount had closed, with the mode it had; nothing may be mounted
// there. One that Mount did not close is left as it is.
func ReleaseMountPoint(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	value := make([]byte, 16)
	n, err := unix.Fgetxattr(fd, guardXattr, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mount point %s: %w", dir, err)
	}
	mode, err := strconv.ParseUint(string(value[:n]), 8, 32)
	if err != nil {
		return fmt.Errorf("mount point %s: mode in %s: %w", dir, guardXattr, err)
	}
	if flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil && flags&fsImmutable != 0 {
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^fsImmutable); err != nil {
			return fmt.Errorf("mount point %s: %w", dir, err)
		}
	}
	if err := f.Chmod(os.FileMode(mode)); err != nil {
		return fmt.Errorf("mount point %s: %w", dir, err)
	}
	return unix.Fremovexattr(fd, guardXattr)
}
