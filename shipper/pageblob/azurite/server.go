package azurite

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// DefaultAccount and DefaultKey are the credentials every Azurite knows; they are published by its makers and
	// protect nothing.
	DefaultAccount = "devstoreaccount1"
	DefaultKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

	// DefaultStartTimeout is how long Start waits for the first answer; node on a busy machine takes seconds.
	DefaultStartTimeout = 60 * time.Second

	stopTimeout  = 20 * time.Second      // SIGTERM saves the metadata first
	pollInterval = 50 * time.Millisecond // between two looks for readiness
	portTries    = 5                     // a free port may be taken by another process before node binds it
	probeTimeout = 2 * time.Second       // for one look
)

// ErrExited is wrapped by the error of a Start whose Azurite ended by itself; the text has what it printed.
var ErrExited = errors.New("azurite ended while it was starting")

// Options say how Azurite runs. The zero value is an in-memory server over http with the default account.
type Options struct {
	Dir          string        // where data lives and survives Restart; "": in memory
	Cert, Key    string        // PEM files: serve https (see Certificate)
	OAuth        bool          // accept bearer tokens; needs https
	Account      string        // "": DefaultAccount
	AccountKeys  []string      // base64, at most two; none: DefaultKey with DefaultAccount
	SkipVersions bool          // accept API versions this Azurite does not know
	StartTimeout time.Duration // 0: DefaultStartTimeout
	Binary       string        // azurite-blob; "": Find
}

// Server is one Azurite. Its port stays the same over Stop and Restart.
type Server struct {
	opts   Options
	binary string
	port   int
	work   string // working directory of the process, ours to remove
	client *http.Client

	// mu is held while a process is started or stopped, which waits for it: two callers must not start two.
	mu struct {
		sync.Mutex
		proc *process
	}
}

// process is one run of node.
type process struct {
	cmd    *exec.Cmd
	output tail
	done   chan struct{} // closed when the process has been waited for
}

// Start runs Azurite and returns when it answers. The caller must Close it; a program that dies without takes it along.
func Start(ctx context.Context, opts Options) (*Server, error) {
	s := &Server{opts: opts, binary: opts.Binary}
	if s.binary == "" {
		binary, err := Find()
		if err != nil {
			return nil, err
		}
		s.binary = binary
	}
	work, err := os.MkdirTemp("", "azurite-")
	if err != nil {
		return nil, fmt.Errorf("working directory for azurite: %w", err)
	}
	s.work = work
	s.client = &http.Client{Timeout: probeTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		// The look for readiness sends nothing secret; the certificate is the test's own.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	if err := s.startSomewhere(ctx); err != nil {
		_ = os.RemoveAll(work)
		return nil, err
	}
	return s, nil
}

// startSomewhere tries a few free ports; only an Azurite that ends by itself is a reason for another.
func (s *Server) startSomewhere(ctx context.Context) error {
	var last error
	for range portTries {
		port, err := freePort()
		if err != nil {
			return err
		}
		s.port = port
		last = s.Restart(ctx)
		if !errors.Is(last, ErrExited) {
			return last
		}
	}
	return last
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("free port for azurite: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Endpoint is the URL of the account, without a slash at its end: append /CONTAINER.
func (s *Server) Endpoint() string {
	return fmt.Sprintf("%s://127.0.0.1:%d/%s", s.scheme(), s.port, s.Account())
}

func (s *Server) scheme() string {
	if s.opts.Cert != "" {
		return "https"
	}
	return "http"
}

// Account is the name of the account that is served.
func (s *Server) Account() string {
	if s.opts.Account == "" {
		return DefaultAccount
	}
	return s.opts.Account
}

// Key is the account's first key, base64.
func (s *Server) Key() string {
	if len(s.opts.AccountKeys) == 0 {
		return DefaultKey
	}
	return s.opts.AccountKeys[0]
}

// Pid is the process id of the running Azurite, 0 if it is stopped.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.proc == nil {
		return 0
	}
	return s.mu.proc.cmd.Process.Pid
}

// Restart starts a stopped server at the same port and waits until it answers; a running one is stopped first.
// With Options.Dir the data is there again, in memory it is gone.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.endLocked(syscall.SIGTERM); err != nil {
		return err
	}
	timeout := s.opts.StartTimeout
	if timeout == 0 {
		timeout = DefaultStartTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	proc, err := s.spawn()
	if err != nil {
		return err
	}
	s.mu.proc = proc
	if err := s.ready(ctx, proc); err != nil {
		return errors.Join(err, s.endLocked(syscall.SIGKILL))
	}
	return nil
}

// Stop ends the process with SIGTERM, which saves what Options.Dir keeps. A stopped server is success.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endLocked(syscall.SIGTERM)
}

// Kill ends the process with SIGKILL. Azurite then forgets writes it has acknowledged.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endLocked(syscall.SIGKILL)
}

// Suspend stops the process without ending it: connections are accepted by the kernel, requests hang. Resume undoes it.
func (s *Server) Suspend() error { return s.signal(syscall.SIGSTOP) }

// Resume lets a suspended process go on.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

// Close stops the server and removes its working directory; Options.Dir stays.
func (s *Server) Close() error {
	return errors.Join(s.Stop(), os.RemoveAll(s.work))
}

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.proc == nil {
		return errors.New("azurite is not running")
	}
	return s.mu.proc.cmd.Process.Signal(sig)
}

// endLocked sends sig to the process and waits for its end; SIGKILL follows when it takes too long.
func (s *Server) endLocked(sig syscall.Signal) error {
	proc := s.mu.proc
	if proc == nil {
		return nil
	}
	s.mu.proc = nil
	// A process that has ended already is what we want.
	_ = proc.cmd.Process.Signal(sig)
	_ = proc.cmd.Process.Signal(syscall.SIGCONT)
	select {
	case <-proc.done:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = proc.cmd.Process.Kill()
	<-proc.done
	return fmt.Errorf("azurite did not end within %s of %s and was killed", stopTimeout, sig)
}

// spawn starts node. A goroutine that owns its thread waits for it: Pdeathsig is bound to the thread that forked.
func (s *Server) spawn() (*process, error) {
	proc := &process{cmd: exec.Command(s.binary, s.args()...), done: make(chan struct{})}
	proc.cmd.Dir = s.work
	proc.cmd.Env = s.env()
	proc.cmd.Stdout, proc.cmd.Stderr = &proc.output, &proc.output
	proc.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(proc.done)
		err := proc.cmd.Start()
		started <- err
		if err == nil {
			// How it ended is of no interest; its output is kept for the error of a start.
			_ = proc.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting azurite: %w", err)
	}
	return proc, nil
}

func (s *Server) args() []string {
	args := []string{"--blobHost", "127.0.0.1", "--blobPort", strconv.Itoa(s.port), "--silent", "--disableTelemetry"}
	if s.opts.Dir == "" {
		args = append(args, "--inMemoryPersistence")
	} else {
		args = append(args, "--location", s.opts.Dir)
	}
	if s.opts.Cert != "" {
		args = append(args, "--cert", s.opts.Cert, "--key", s.opts.Key)
	}
	if s.opts.OAuth {
		args = append(args, "--oauth", "basic")
	}
	if s.opts.SkipVersions {
		args = append(args, "--skipApiVersionCheck")
	}
	return args
}

// env is the environment of the process: ours, without what would change which accounts it knows.
func (s *Server) env() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AZURITE_") {
			env = append(env, v)
		}
	}
	if s.opts.Account != "" || len(s.opts.AccountKeys) > 0 {
		keys := s.opts.AccountKeys
		if len(keys) == 0 {
			keys = []string{DefaultKey}
		}
		env = append(env, "AZURITE_ACCOUNTS="+s.Account()+":"+strings.Join(keys, ":"))
	}
	return env
}

// ready returns when the blob service of proc answers on the port, or says why it never will.
func (s *Server) ready(ctx context.Context, proc *process) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !s.answers(ctx) {
		select {
		case <-proc.done:
			return fmt.Errorf("%w: %s", ErrExited, proc.output.String())
		case <-ctx.Done():
			return fmt.Errorf("azurite does not answer on port %d (%s): %w", s.port, proc.output.String(), ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// answers reports whether an Azurite answers; another program may have taken the port.
func (s *Server) answers(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint()+"?comp=list", nil)
	if err != nil {
		return false
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return strings.HasPrefix(resp.Header.Get("Server"), "Azurite-Blob/")
}
