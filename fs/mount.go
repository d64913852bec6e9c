package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// DefaultMaxBackground is how many asynchronous requests the kernel keeps in flight per mount: two disks at queue
	// depth 32.
	DefaultMaxBackground = 64

	// maxWrite is the largest READ and WRITE, in bytes; more needs a raised fs.fuse.max_pages_limit. Less was measured:
	// buffers that fit the second-level cache save less than the additional requests cost, at every size below.
	maxWrite = 1 << 20

	fsType = "vhdrelay" // the mount's type is fuse.vhdrelay
)

// capabilities are asked of the kernel beyond go-fuse's own: shared mmap on disks (6.6), parallel requests for one
// asynchronous O_DIRECT file, O_TRUNC inside OPEN, no lookups for a plain ls, ACLs that count, and with them the
// umask, which a default ACL overrules. A kernel without one goes on without it.
const capabilities = fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_ASYNC_DIO | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO |
	fuse.CAP_POSIX_ACL | fuse.CAP_DONT_MASK

// refused are capabilities go-fuse would accept: passthrough writes around the shim.
const refused = fuse.CAP_PASSTHROUGH

// Options say what to serve and where.
type Options struct {
	Name          string       // of the store, shown as fsname=vhdrelay:<name>; default: base name of Mount
	Source        string       // directory with the images
	Mount         string       // empty directory, outside of Source
	Volumes       Volumes      // nil: everything is served untracked
	Log           *slog.Logger // nil: nothing is logged
	Debug         bool         // log every request, at debug level
	Version       string       // of the program, for the next one
	AllowOther    bool         // let users other than the daemon's in; needed by every hypervisor that drops root
	MaxBackground int          // default DefaultMaxBackground
	// Keep is given the connection before the first request is answered, to put it where it outlives this process; it
	// keeps its own duplicates. It is not asked where the kernel cannot resend. nil, or an error, which is logged: the
	// mount ends with the process.
	Keep func(*Connection) error
	// Kept is what an earlier process's Keep got. Mount owns it. The mount is taken over; if its connection has ended
	// meanwhile, it is made afresh.
	Kept *Connection
	// Hook is called at every Point with the number of the request; tests end the process there. nil: never.
	Hook func(point string, request uint64)
	// Observe is told how long one in 64 requests of a kind took: read, write, fsync. nil: nothing is measured.
	Observe func(verb string, took time.Duration)
}

// Server is a mounted store.
type Server struct {
	store   *store
	fuse    *fuse.Server
	mount   string
	device  *os.File
	num     int  // of the descriptor that go-fuse reads
	kept    bool // somebody else has the device too
	adopted bool // an earlier process made the mount
	done    chan struct{}
}

// Mount serves opts.Source at opts.Mount. When it returns without an error, requests are answered.
//
// It needs root. A mount point that a crashed daemon left behind is detached first; one with a living file system on
// it is ErrMounted. The directory below the mount is made mode 0 and, where the file system can, immutable, and stays
// so: see ReleaseMountPoint.
func Mount(opts Options) (*Server, error) {
	opts, err := opts.defaults()
	if err != nil {
		return nil, err
	}
	if opts.Kept != nil {
		m, err := adopt(opts, opts.Kept)
		if !errors.Is(err, ErrAborted) {
			return m, err
		}
		opts.Log.Error("the mount that an earlier process left has ended meanwhile; who had files open sees I/O errors, and it is made afresh", "mount", opts.Mount, "cause", err)
		opts.Kept.Device.Close()
	}
	if opts, err = opts.complete(); err != nil {
		return nil, err
	}
	if err := guard(opts.Mount); err != nil {
		return nil, err
	}
	m, err := mountAfresh(opts)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", opts.Mount, err)
	}
	if err := refusePoll(opts.Mount); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", opts.Mount, err), m.Detach())
	}
	return m, nil
}

// mountAfresh makes a mount and serves it.
func mountAfresh(opts Options) (*Server, error) {
	s, err := newStore(opts.Source, opts.Volumes, opts.Log)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", opts.Source, err)
	}
	s.observe, s.hook = opts.Observe, opts.Hook
	s.unhideAll()
	device, err := openDevice(opts)
	if err != nil {
		s.OnUnmount()
		return nil, err
	}
	m := &Server{store: s, mount: opts.Mount, device: device, done: make(chan struct{})}
	if err := m.begin(opts); err != nil {
		s.OnUnmount()
		return nil, errors.Join(err, device.Close(), m.Detach())
	}
	return m, nil
}

// begin answers INIT, makes sure that another process can go on, and serves.
func (s *Server) begin(opts Options) error {
	init, err := readInit(s.device)
	if err != nil {
		return err
	}
	srv, num, answer, err := negotiate(s.store, init, opts.fuse())
	if err != nil {
		return err
	}
	s.fuse, s.num = srv, num
	if opts.Keep != nil && canResend(init) {
		if err := s.keep(opts, init, answer); err != nil {
			opts.Log.Warn("the mount ends with this process", "mount", opts.Mount, "cause", err)
		}
	}
	if _, err := unix.Write(int(s.device.Fd()), answer); err != nil {
		return fmt.Errorf("INIT: %w", err)
	}
	if err := connect(s.device, num); err != nil {
		return err
	}
	s.serve()
	return nil
}

// keep writes down what the next process needs, and gives it away with the device.
func (s *Server) keep(opts Options, init, answer []byte) error {
	st, err := s.store.root.stat()
	if err != nil {
		return err
	}
	at, err := mountsAt(opts.Mount)
	if err != nil || len(at) == 0 {
		return fmt.Errorf("the mount is not in mountinfo: %w", errors.Join(err, ErrOther))
	}
	l, err := newLedger()
	if err != nil {
		return err
	}
	have := facts{Writer: opts.Version, Dev: st.Dev, Ino: st.Ino, Mount: opts.Mount, Device: at[len(at)-1].device, Init: init, Answer: answer}
	err = l.write(have)
	if err == nil {
		err = opts.Keep(&Connection{Device: s.device, State: l.file})
	}
	if err != nil {
		return errors.Join(err, l.close())
	}
	s.store.ledger, s.store.kept, s.kept = l, true, true
	return nil
}

// serve answers requests until the mount is gone.
func (s *Server) serve() {
	go func() {
		defer close(s.done)
		s.fuse.Serve()
		s.device.Close() // its mount is gone
	}()
}

// Kept says whether the mount outlives this process.
func (s *Server) Kept() bool { return s.kept }

// Adopted says whether an earlier process made the mount.
func (s *Server) Adopted() bool { return s.adopted }

// defaults checks what can be checked without looking at the mount point itself: it may be a mount that nobody answers for.
func (o Options) defaults() (Options, error) {
	var err error
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxBackground == 0 {
		o.MaxBackground = DefaultMaxBackground
	}
	if o.Source, err = resolve(o.Source); err != nil {
		return o, fmt.Errorf("source: %w", err)
	}
	if o.Mount, err = resolveDead(o.Mount); err != nil {
		return o, fmt.Errorf("mount point: %w", err)
	}
	if o.Name == "" {
		o.Name = filepath.Base(o.Mount)
	}
	return o, nil
}

// complete clears a dead mount away and checks the mount point.
func (o Options) complete() (Options, error) {
	err := DetachDead(o.Mount, o.Log)
	if err != nil {
		return o, err
	}
	if o.Mount, err = resolve(o.Mount); err != nil {
		return o, fmt.Errorf("mount point: %w", err)
	}
	if within(o.Source, o.Mount) || within(o.Mount, o.Source) {
		return o, fmt.Errorf("source %s, mount point %s: %w", o.Source, o.Mount, ErrNested)
	}
	return o, checkMountPoint(o.Mount)
}

func resolve(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// within says whether the resolved path p is dir or lies below it.
func within(p, dir string) bool {
	rel, err := filepath.Rel(dir, p)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (o Options) fuse() *fuse.MountOptions {
	level := slog.LevelError
	if o.Debug {
		level = slog.LevelDebug
	}
	return &fuse.MountOptions{
		FsName:               fsType + ":" + o.Name,
		Name:                 fsType,
		MaxBackground:        o.MaxBackground,
		MaxWrite:             maxWrite,
		DisableSplice:        true,
		ExtraCapabilities:    capabilities,
		DisabledCapabilities: refused,
		Debug:                o.Debug,
		Logger:               slog.NewLogLogger(o.Log.Handler(), level),
	}
}

// Wait returns when the store is unmounted, by Unmount or from outside, and every request is answered.
func (s *Server) Wait() { <-s.done }

// Done is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.done }

// Unmount detaches the mount and waits for the last request. While a file is open or a process has its working
// directory there, it is ErrBusy and nothing changes. After the mount is gone it does nothing.
func (s *Server) Unmount() error {
	select {
	case <-s.done:
		return nil
	default:
	}
	switch err := unix.Unmount(s.mount, unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL: // EINVAL: nothing is mounted there any more
	case unix.EBUSY:
		return fmt.Errorf("unmount %s: %w", s.mount, ErrBusy)
	default:
		return fmt.Errorf("unmount %s: %w", s.mount, err)
	}
	s.Wait()
	return nil
}

// Detach takes the mount out of the name space at once. Open files go on until they are closed, and only then Wait
// returns.
func (s *Server) Detach() error {
	if err := unix.Unmount(s.mount, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
		return fmt.Errorf("detach %s: %w", s.mount, err)
	}
	return nil
}

// OpenFiles lists the paths of the files that are open at the mount, disks and others, in no order. A removed file
// that is still open is listed under its last path.
func (s *Server) OpenFiles() []string {
	var open []string
	for _, n := range s.store.tree.all() {
		n.open.Lock()
		count := n.open.count
		n.open.Unlock()
		if count > 0 {
			p, _ := s.store.tree.path(n)
			open = append(open, p)
		}
	}
	return open
}
