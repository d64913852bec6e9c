package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// dieEnv names the point at which a process dies when a request comes for the first time.
const dieEnv = "VHDRELAY_FS_DIE"

// childHandover serves args[0] at args[1]. A mount of its own goes to the parent through descriptor 3; with args[2] it
// takes over what is in 4 and 5.
func childHandover(args []string) error {
	opts := Options{Source: args[0], Mount: args[1], Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Keep: func(c *Connection) error {
			return unix.Sendmsg(3, []byte("kept"), unix.UnixRights(int(c.Device.Fd()), int(c.State.Fd())), nil, 0)
		}}
	if point := os.Getenv(dieEnv); point != "" {
		opts.Hook = func(at string, request uint64) {
			if at == point && request&resent == 0 {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	if len(args) > 2 && args[2] == "kept" {
		opts.Kept = &Connection{Device: os.NewFile(4, "/dev/fuse"), State: os.NewFile(5, "state")}
	}
	m, err := Mount(opts)
	if err != nil {
		return err
	}
	fmt.Println("adopted", m.Adopted())
	go func() { m.Wait(); os.Exit(0) }()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// keeper is the tiny parent: it has the connection while the process that serves it comes and goes.
type keeper struct {
	t        *testing.T
	src, mnt string
	conn     *Connection
	child    *exec.Cmd
}

func newKeeper(t *testing.T) *keeper {
	k := &keeper{t: t, src: t.TempDir(), mnt: t.TempDir()}
	needResend(t)
	t.Cleanup(k.end)
	return k
}

func needResend(t testing.TB) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major < 6 || major == 6 && minor < 9 {
		t.Skipf("kernel %d.%d does not resend", major, minor)
	}
}

// start starts a process that serves, and returns when it does.
func (k *keeper) start() {
	k.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), "theirs"), os.NewFile(uintptr(pair[1]), "ours")
	defer theirs.Close()
	defer ours.Close()
	exe, err := os.Executable()
	if err != nil {
		k.t.Fatal(err)
	}
	cmd := exec.Command(exe, k.src, k.mnt)
	cmd.Env, cmd.Stderr = append(os.Environ(), childEnv+"=handover"), os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if k.conn != nil {
		cmd.Args = append(cmd.Args, "kept")
		cmd.ExtraFiles = append(cmd.ExtraFiles, k.conn.Device, k.conn.State)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		k.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.child = cmd
	if k.conn == nil {
		k.receive(ours)
	}
	line := make([]byte, 64)
	late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	n, _ := out.Read(line)
	late.Stop()
	if n == 0 && os.Getenv(dieEnv) != "" {
		return // it may die of the first request already
	}
	if want := fmt.Sprintf("adopted %v\n", len(cmd.Args) > 3); string(line[:n]) != want {
		k.t.Fatalf("the child says %q, want %q", line[:n], want)
	}
}

func (k *keeper) receive(from *os.File) {
	k.t.Helper()
	msg, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(8))
	_, n, _, _, err := unix.Recvmsg(int(from.Fd()), msg, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		k.t.Fatal(err)
	}
	all, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(all) != 1 {
		k.t.Fatal("no descriptors", err)
	}
	fds, err := unix.ParseUnixRights(&all[0])
	if err != nil || len(fds) != 2 {
		k.t.Fatal(fds, err)
	}
	k.conn = &Connection{Device: os.NewFile(uintptr(fds[0]), "/dev/fuse"), State: os.NewFile(uintptr(fds[1]), "state")}
}

// kill ends the process in the middle of whatever it does.
func (k *keeper) kill() {
	k.child.Process.Kill()
	k.child.Wait()
}

func (k *keeper) end() {
	_ = unix.Unmount(k.mnt, unix.MNT_FORCE)
	_ = unix.Unmount(k.mnt, unix.MNT_DETACH)
	if k.child != nil {
		k.kill()
	}
	if k.conn != nil {
		k.conn.Close()
	}
	if err := ReleaseMountPoint(k.mnt); err != nil {
		k.t.Error(err)
	}
}

// TestWritesSurviveTheProcess kills the process again and again under writers that check what they wrote.
func TestWritesSurviveTheProcess(t *testing.T) {
	k := newKeeper(t)
	k.image("a.raw", 8<<20)
	k.start()
	w := startWriter(t, "stamp", filepath.Join(k.mnt, "a.raw"))
	rng := rand.New(rand.NewPCG(1, 2))
	for range kills() {
		k.waitForWrites()
		<-time.After(time.Duration(rng.IntN(20)) * time.Millisecond) // a moment of no meaning
		k.kill()
		k.start()
	}
	w.finish()
}

// TestOlderLedgerIsRaised: whoever takes over an older program's ledger makes it one of its own version, which the older one
// refuses then.
func TestOlderLedgerIsRaised(t *testing.T) {
	k := newKeeper(t)
	k.image("a.raw", 4096)
	k.start()
	k.kill()
	version := make([]byte, 4)
	if _, err := k.conn.State.WriteAt(version, versionAt); err != nil {
		t.Fatal(err)
	}
	k.start()
	if _, err := k.conn.State.ReadAt(version, versionAt); err != nil || binary.LittleEndian.Uint32(version) != ledgerVersion {
		t.Errorf("%v, %v", version, err)
	}
}

func kills() int {
	if testing.Short() {
		return 3
	}
	return 10
}

// image makes an image beside the mount.
func (k *keeper) image(name string, size int) {
	k.t.Helper()
	if err := os.WriteFile(filepath.Join(k.src, name), make([]byte, size), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// waitForWrites returns when the image has changed.
func (k *keeper) waitForWrites() {
	k.t.Helper()
	var first, now unix.Stat_t
	path := filepath.Join(k.src, "a.raw")
	if err := unix.Stat(path, &first); err != nil {
		k.t.Fatal(err)
	}
	for late := time.Now().Add(20 * time.Second); ; {
		if err := unix.Stat(path, &now); err != nil || time.Now().After(late) {
			k.t.Fatal("nobody writes", err)
		}
		if now.Mtim != first.Mtim {
			return
		}
		<-time.After(time.Millisecond)
	}
}

// writer is a process that uses the mount. It must not be the one that has the connection: what waits for an answer cannot
// be killed, and as long as it has the connection open, that does not end.
type writer struct {
	t     *testing.T
	stdin io.Closer
	ended chan error
}

func startWriter(t *testing.T, part string, args ...string) *writer {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), childEnv+"="+part)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := &writer{t: t, stdin: stdin, ended: make(chan error, 1)}
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, said.Bytes())
		}
		w.ended <- err
	}()
	t.Cleanup(func() { cmd.Process.Kill() })
	return w
}

// finish lets the writer end, and fails with what it found.
func (w *writer) finish() {
	w.t.Helper()
	w.stdin.Close()
	w.wait()
}

func (w *writer) wait() {
	w.t.Helper()
	select {
	case err := <-w.ended:
		if err != nil {
			w.t.Error(err)
		}
	case <-time.After(20 * time.Second):
		w.t.Error("a process that uses the mount does not end")
	}
}

// childStamp writes to args[0] with some depth until its standard input ends.
func childStamp(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	const depth = 16
	var writers errgroup.Group
	for i := range int64(depth) {
		writers.Go(func() error { return writeStamped(ctx, f, i*st.Size()/depth, st.Size()/depth) })
	}
	return writers.Wait()
}

// writeStamped writes blocks with their place and a number, and reads each back.
func writeStamped(ctx context.Context, f *os.File, at, size int64) error {
	mem, err := unix.Mmap(-1, 0, 2*65536, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	rng := rand.New(rand.NewPCG(uint64(at), 1))
	for number := uint64(1); ctx.Err() == nil; number++ {
		length := int64(1+rng.IntN(16)) * 4096
		off := at + rng.Int64N((size-length)/4096)*4096
		out, back := mem[:length], mem[65536:][:length]
		for p := 0; p < len(out); p += 8 {
			binary.LittleEndian.PutUint64(out[p:], uint64(off)+number<<32+uint64(p))
		}
		if _, err := f.WriteAt(out, off); err != nil {
			return err
		}
		if _, err := f.ReadAt(back, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(out, back) {
			return fmt.Errorf("at %d: something else is read than was written", off)
		}
	}
	return nil
}

// The kernel copies requests only into memory that is there, when it copies for a process that is being killed; the buffer
// that INIT was read into included.
func TestReadBuffersArePresent(t *testing.T) {
	s, err := newStore(t.TempDir(), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.OnUnmount()
	init := make([]byte, wireHeader+64)
	binary.LittleEndian.PutUint32(init, uint32(len(init)))
	binary.LittleEndian.PutUint32(init[4:], 26)
	binary.LittleEndian.PutUint64(init[8:], 2)
	binary.LittleEndian.PutUint32(init[wireHeader:], 7)
	binary.LittleEndian.PutUint32(init[wireHeader+4:], 41)
	srv, _, _, err := negotiate(s, init, (&Options{Name: "t", Log: slog.New(slog.DiscardHandler)}).fuse())
	if err != nil {
		t.Fatal(err)
	}
	pool, err := readPool(srv)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		b := pool.Get().([]byte)
		for at := 0; at < len(b); at += os.Getpagesize() {
			if !resident(t, &b[at]) {
				t.Fatalf("a buffer of %d bytes is not there at %d", len(b), at)
			}
		}
	}
}

// resident says whether the page of an address is in memory.
func resident(t *testing.T, p *byte) bool {
	t.Helper()
	page := uintptr(unsafe.Pointer(p)) &^ uintptr(os.Getpagesize()-1)
	var in byte
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, page, uintptr(os.Getpagesize()), uintptr(unsafe.Pointer(&in))); errno != 0 {
		t.Fatal(errno)
	}
	return in&1 != 0
}

// TestSilentMountIsToldApart: a mount whose connection is kept and that nobody serves is neither dead nor asked for ever.
func TestSilentMountIsToldApart(t *testing.T) {
	k := newKeeper(t)
	k.image("a.raw", 4096)
	k.start()
	if dead, err := Dead(k.mnt); dead || err != nil {
		t.Errorf("while it is served: %v, %v", dead, err)
	}
	k.kill()
	if dead, err := Dead(k.mnt); dead || !errors.Is(err, ErrSilent) {
		t.Errorf("nobody serves it: %v, %v", dead, err)
	}
	if _, err := Mount(Options{Source: k.src, Mount: k.mnt}); !errors.Is(err, ErrSilent) {
		t.Errorf("mounted over it: %v", err)
	}
}

// TestFilesWithoutANameOutliveAFailedTakeover: who tries to take the mount over and cannot leaves all for the next one.
func TestFilesWithoutANameOutliveAFailedTakeover(t *testing.T) {
	k := newKeeper(t)
	k.killedUnderHolder(k.failToTakeOver)
}

// failToTakeOver tries it with a device that goes away when the files are looked for.
func (k *keeper) failToTakeOver() {
	k.t.Helper()
	device, err := unix.FcntlInt(k.conn.Device.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	c := &Connection{Device: os.NewFile(uintptr(device), "/dev/fuse"), State: dup(k.t, k.conn.State)}
	r, w, err := os.Pipe()
	if err != nil {
		k.t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	_, err = Mount(Options{Source: k.src, Mount: k.mnt, Kept: c, Volumes: unplugs(func() { unix.Dup3(int(r.Fd()), device, unix.O_CLOEXEC) })})
	if !errors.Is(err, unix.EBADF) { // nobody can write into a pipe's end for reading
		k.t.Fatalf("taken over: %v", err)
	}
	c.Device.Close()
}

// unplugs is told of images.
type unplugs func()

func (u unplugs) Attach(string, Identity) Tracker  { u(); return nil }
func (u unplugs) Renamed(string, string, Identity) {}
func (u unplugs) Removed(string, Identity)         {}
func (u unplugs) Closed(string, Identity)          {}
