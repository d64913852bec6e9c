package fs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsIocGetVersion is FS_IOC_GETVERSION, _IOR('v', 1, long). File systems store an int there.
const fsIocGetVersion = 0x80087601

func getVersion(fd int) (uint64, error) {
	var v [2]uint32
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocGetVersion, uintptr(unsafe.Pointer(&v)))
	if errno != 0 {
		return 0, errno
	}
	return uint64(v[0]), nil
}

// pwriteSync writes and syncs in one call: flags is RWF_DSYNC or RWF_SYNC. Where the kernel or the file system does
// not know the flag, it writes and then syncs.
func pwriteSync(fd int, p []byte, off int64, flags int) (int, error) {
	n, err := unix.Pwritev2(fd, [][]byte{p}, off, flags)
	if err != unix.EOPNOTSUPP && err != unix.ENOSYS {
		return n, err
	}
	if n, err = unix.Pwrite(fd, p, off); err != nil {
		return n, err
	}
	if flags == unix.RWF_SYNC {
		return n, unix.Fsync(fd)
	}
	return n, unix.Fdatasync(fd)
}
