package fs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Connection is what outlives the process that serves a mount. The kernel keeps the mount, and what was asked of it, as
// long as anybody has Device open.
type Connection struct {
	Device *os.File // /dev/fuse
	State  *os.File // the ledger
}

// Close gives both back. If nobody else has Device, the mount is dead then.
func (c *Connection) Close() error { return errors.Join(c.Device.Close(), c.State.Close()) }

// wireHeader is the size of fuse_in_header; wireOut that of fuse_out_header.
const (
	wireHeader = 40
	wireOut    = 16
)

// openDevice makes the mount and returns its end of the connection.
func openDevice(o Options) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(o.Mount, &st); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	data := []string{
		fmt.Sprintf("fd=%d", fd), fmt.Sprintf("rootmode=%o", st.Mode&unix.S_IFMT), fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()), fmt.Sprintf("max_read=%d", maxWrite), "default_permissions",
	}
	if o.AllowOther {
		data = append(data, "allow_other")
	}
	if err := unix.Mount(fsType+":"+o.Name, o.Mount, "fuse."+fsType, unix.MS_NOSUID|unix.MS_NODEV, strings.Join(data, ",")); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// negotiate lets go-fuse answer an INIT request and returns the server, which has a socket where /dev/fuse has to be, its
// number, and the answer. So the kernel, which sends INIT once in the life of a mount, need not be asked.
func negotiate(s *store, init []byte, o *fuse.MountOptions) (srv *fuse.Server, num int, answer []byte, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, nil, err
	}
	defer unix.Close(pair[0])
	if _, err := unix.Write(pair[0], init); err != nil {
		unix.Close(pair[1])
		return nil, 0, nil, err
	}
	srv, err = fuse.NewServer(s, fmt.Sprintf("/dev/fd/%d", pair[1]), o)
	if err == nil {
		err = keepPresent(srv)
	}
	if err != nil {
		return nil, 0, nil, err
	}
	answer = make([]byte, 4096)
	n, err := unix.Read(pair[0], answer)
	return srv, pair[1], answer[:max(n, 0)], err
}

// connect puts /dev/fuse where the server reads. Nobody has read yet.
func connect(device *os.File, num int) error { return unix.Dup3(int(device.Fd()), num, unix.O_CLOEXEC) }

// readInit takes the kernel's first request, which is there as soon as the mount is.
func readInit(device *os.File) ([]byte, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(int(device.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("INIT: %w", err)
		}
		if !isInit(buf[:n]) {
			return nil, errors.New("INIT: the kernel asks something else first")
		}
		return bytes.Clone(buf[:n]), nil
	}
}

// isInit says whether p is a whole INIT request, up to its second word of flags.
func isInit(p []byte) bool {
	const opcode, least = 26, wireHeader + 20
	return len(p) >= least && int(binary.LittleEndian.Uint32(p)) == len(p) && binary.LittleEndian.Uint32(p[4:]) == opcode
}

// initFlags is where the two words of flags lie in an INIT request and in its answer.
var (
	requestFlags = [2]int{wireHeader + 12, wireHeader + 16}
	answerFlags  = [2]int{wireOut + 12, wireOut + int(unsafe.Offsetof(fuse.InitOut{}.Flags2))}
)

// canResend says whether the kernel can send again what a dead process has not answered (FUSE_HAS_RESEND).
func canResend(init []byte) bool {
	return binary.LittleEndian.Uint32(init[requestFlags[1]:])&uint32(fuse.CAP_HAS_RESEND>>32) != 0
}

// asAgreed returns the INIT request with those flags only that were agreed on: another build may want others, and cannot
// have them any more. An answer that has none of a bit makes the request have none.
func asAgreed(init, answer []byte) []byte {
	init = bytes.Clone(init)
	for i := range requestFlags {
		want := binary.LittleEndian.Uint32(init[requestFlags[i]:]) & binary.LittleEndian.Uint32(answer[answerFlags[i]:])
		binary.LittleEndian.PutUint32(init[requestFlags[i]:], want)
	}
	return init
}

// agreed compares what matters of two answers: flags, largest write, version.
func agreed(old, now []byte) bool {
	if len(old) != len(now) || len(old) < wireOut+int(unsafe.Sizeof(fuse.InitOut{})) {
		return false
	}
	a, b := (*fuse.InitOut)(unsafe.Pointer(&bytes.Clone(old)[wireOut])), (*fuse.InitOut)(unsafe.Pointer(&bytes.Clone(now)[wireOut]))
	return a.Flags == b.Flags && a.Flags2 == b.Flags2 && a.MaxWrite == b.MaxWrite && a.Minor == b.Minor
}

// largestWrite is what an answer to INIT promises to take.
func largestWrite(answer []byte) int {
	if len(answer) < wireOut+24 {
		return maxWrite
	}
	return int(binary.LittleEndian.Uint32(answer[wireOut+20:]))
}

// alive says whether the kernel's end is still there.
func alive(device *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(device.Fd()), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) == 0
}

// resend asks the kernel to send everything again that was read and not answered. Nobody may be reading: what this process
// has read would come twice.
func resend(device *os.File) error {
	const notifyResend = 7 // FUSE_NOTIFY_RESEND
	msg := make([]byte, wireOut)
	binary.LittleEndian.PutUint32(msg, wireOut)
	binary.LittleEndian.PutUint32(msg[4:], notifyResend)
	if _, err := unix.Write(int(device.Fd()), msg); err != nil {
		return fmt.Errorf("resend: %w", err)
	}
	return nil
}

// refusePoll asks one question that go-fuse answers so that the kernel asks no more whether a file is ready: a Go process
// that opens files of a mount it serves would wait for itself.
func refusePoll(mount string) error {
	fd, err := unix.Open(filepath.Join(mount, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return nil
}
