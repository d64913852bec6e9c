package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

// Of many appliances that start at the same moment over the same stale socket, exactly one gets it.
func TestOneOfManyWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()

	var winners atomic.Int32
	var wait sync.WaitGroup
	start := make(chan struct{})
	kept := make(chan net.Listener, 16)
	for range 16 {
		wait.Go(func() {
			<-start
			ln, err := Listen(path)
			switch {
			case err == nil:
				winners.Add(1)
				kept <- ln
			case !errors.Is(err, &Error{Code: CodeRunning}):
				t.Errorf("%v", err)
			}
		})
	}
	close(start)
	wait.Wait()
	close(kept)
	if n := winners.Load(); n != 1 {
		t.Errorf("%d have the socket", n)
	}
	for ln := range kept {
		ln.Close()
	}
}

// The winner's socket must be the one that is reached, round after round of start and stop.
func TestStartStopRounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	client := NewClient(path)
	for round := range 5 {
		ln, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		version := fmt.Sprint(round)
		go func() {
			done <- Serve(ctx, ln, &fake{status: func(context.Context, string) (Status, error) { return Status{Version: version}, nil }},
				slog.New(slog.DiscardHandler))
		}()
		if s, err := client.Status(deadline(t), ""); err != nil || s.Version != version {
			t.Errorf("round %d: %+v, %v", round, s, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("round %d: left %v, %v", round, entries, err)
		}
	}
}

// Many commands at once, each with its own answer.
func TestParallelCalls(t *testing.T) {
	client, _ := serve(t, &fake{
		status: func(_ context.Context, vm string) (Status, error) { return Status{Version: vm}, nil },
		sync: func(_ context.Context, vm string, _ bool, progress func(Progress)) (SyncResult, error) {
			for i := range int64(20) {
				progress(Progress{Stage: vm, Done: i})
			}
			return SyncResult{Epoch: uint64(len(vm)), Point: vm}, nil
		},
	})
	var all errgroup.Group
	for i := range 20 {
		vm := fmt.Sprint("vm", i)
		all.Go(func() error {
			s, err := client.Status(deadline(t), vm)
			if err != nil || s.Version != vm {
				return fmt.Errorf("%s: %+v, %w", vm, s, err)
			}
			next := int64(0)
			res, err := client.Sync(deadline(t), vm, false, func(p Progress) {
				if p.Stage != vm || p.Done != next {
					t.Errorf("%s: %+v, want step %d", vm, p, next)
				}
				next++
			})
			if err != nil || res.Point != vm || next != 20 {
				return fmt.Errorf("%s: %+v after %d steps, %w", vm, res, next, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}

// A backend may report progress from several goroutines, one at a time; lines must stay whole even if it errs there.
func TestLinesStayWhole(t *testing.T) {
	client, _ := serve(t, &fake{sync: func(_ context.Context, _ string, _ bool, progress func(Progress)) (SyncResult, error) {
		var wait sync.WaitGroup
		for i := range 8 {
			wait.Go(func() {
				for range 50 {
					progress(Progress{Stage: fmt.Sprint("worker ", i), Total: 1 << 40})
				}
			})
		}
		wait.Wait()
		return SyncResult{Epoch: 1}, nil
	}})
	seen := 0
	if _, err := client.Sync(deadline(t), "a", false, func(p Progress) {
		if p.Total == 1<<40 {
			seen++
		}
	}); err != nil || seen != 400 {
		t.Errorf("%d whole lines of 400, %v", seen, err)
	}
}

// answering runs a server that is no appliance.
func answering(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return NewClient(path)
}

func TestClientOfSomethingElse(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    Code
	}{
		"another API":     {http.NotFound, CodeInternal},
		"an empty answer": {func(http.ResponseWriter, *http.Request) {}, CodeInterrupted},
		"half a document": {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"version":"1`) }, CodeInterrupted},
		"half a line": {func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"progress":{"stage":"a"}}`+"\n"+`{"resu`)
		}, CodeInterrupted},
		"an error, no JSON": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadGateway) }, CodeInternal},
	} {
		client := answering(t, c.handler)
		if _, err := client.Sync(deadline(t), "a", false, nil); !errors.Is(err, &Error{Code: c.want}) {
			t.Errorf("%s: sync: %v, want %s", name, err, c.want)
		}
		if name == "half a line" {
			continue // a whole document to a status
		}
		if _, err := client.Status(deadline(t), ""); !errors.Is(err, &Error{Code: c.want}) {
			t.Errorf("%s: status: %v, want %s", name, err, c.want)
		}
	}
}

func TestResultOfAnotherShapeIsAnError(t *testing.T) {
	client := answering(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"result":"twelve"}`+"\n") })
	if res, err := client.Sync(deadline(t), "a", false, nil); err == nil {
		t.Errorf("accepted: %+v", res)
	}
}

// A newer appliance may send fields this client does not know.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	client := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, `{"version":"9","vms":[{"name":"a","mood":"good"}],"weather":"fine"}`)
			return
		}
		io.WriteString(w, `{"weather":"fine"}`+"\n"+`{"result":{"epoch":3,"mood":"good"}}`+"\n")
	})
	if s, err := client.Status(deadline(t), ""); err != nil || s.VMs[0].Name != "a" {
		t.Errorf("%+v, %v", s, err)
	}
	if res, err := client.Sync(deadline(t), "a", false, nil); err != nil || res.Epoch != 3 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestDeadSocketFileIsUnreachable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(path).Status(deadline(t), ""); !errors.Is(err, &Error{Code: CodeUnreachable}) {
		t.Errorf("%v", err)
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	ln, err := Listen(filepath.Join(t.TempDir(), "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("accept is broken")
	if err := Serve(context.Background(), brokenListener{ln, broken}, &fake{}, slog.New(slog.DiscardHandler)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type brokenListener struct {
	net.Listener
	err error
}

func (l brokenListener) Accept() (net.Conn, error) { return nil, l.err }

func TestErrorConstructors(t *testing.T) {
	cause := errors.New("cause")
	e := &Error{Code: "x", Message: "m", Err: cause}
	if !errors.Is(e, cause) || e.Error() != "m" || errors.Is(e, errUnexpected) {
		t.Errorf("%v", e)
	}
	if got := asError(context.Canceled); got.Code != CodeInterrupted || got.Exit != ExitUnreachable {
		t.Errorf("%+v", got)
	}
	if got := asError(fmt.Errorf("x: %w", NotFound("a", "%d", 5))); got.Exit != ExitNotFound || got.Message != "x: 5" || got.Action != "a" {
		t.Errorf("%+v", got)
	}
	if got := Refused("c", "a", "no %s", "way"); got.Exit != ExitRefused || got.Message != "no way" || got.Code != "c" {
		t.Errorf("%+v", got)
	}
}

// The numbers are the operator's contract.
func TestExitCodesNeverChange(t *testing.T) {
	for exit, want := range map[Exit]int{ExitDone: 0, ExitFailed: 1, ExitUsage: 2, ExitConfig: 3, ExitUnreachable: 4, ExitNotFound: 5,
		ExitRefused: 6, ExitDiffers: 7, ExitWarning: 10, ExitCritical: 11} {
		if int(exit) != want {
			t.Errorf("%d, want %d", exit, want)
		}
	}
}

// Between taking the lock and listening an appliance is there already, though nobody answers yet.
func TestHeldLockIsRespectedBeforeAnybodyListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	lock, err := lockFile(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	if ln, err := Listen(path); !errors.Is(err, &Error{Code: CodeRunning}) {
		t.Errorf("%v, %v", ln, err)
	}
	lock.Close()
	ln, err := Listen(path)
	if err != nil {
		t.Fatalf("once the lock is free: %v", err)
	}
	ln.Close()
}

// A call that dies before its first byte was heard all the same: the appliance is there, and a command that would start
// work of its own if there is none must not.
func TestDeathBeforeTheFirstByteIsAnInterruption(t *testing.T) {
	client, _ := serve(t, &fake{status: func(context.Context, string) (Status, error) { panic("bug") }})
	if _, err := client.Status(deadline(t), ""); !errors.Is(err, &Error{Code: CodeInterrupted}) {
		t.Errorf("%v", err)
	}
}
