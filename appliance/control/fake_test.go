package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"
)

// fake is a Backend whose answers are set by the test. A nil function is a call that was not expected.
type fake struct {
	status func(ctx context.Context, vm string) (Status, error)
	points func(ctx context.Context, vm string) (Points, error)
	sync   func(ctx context.Context, vm string, wait bool, progress func(Progress)) (SyncResult, error)
	resync func(ctx context.Context, vm, disk string, o ResyncOptions, progress func(Progress)) (Resync, error)
	move   func(ctx context.Context, command, vm string, o UnprotectOptions) (Moved, error)
	mount  func(ctx context.Context, store string, force bool) (Unmounted, error)
	adopt  func(ctx context.Context, vm string, progress func(Progress)) (Resync, error)
	check  func(ctx context.Context) error
	dump   func(ctx context.Context, w io.Writer) error

	jobs      func(vm string) (Jobs, error)
	job       func(id string, progress func(Progress)) (Job, error)
	startJob  func(req JobRequest) (Job, error)
	preflight func(vm string, progress func(Progress)) (Preflight, error)
}

var errUnexpected = errors.New("unexpected call")

func (f *fake) Status(ctx context.Context, vm string) (Status, error) {
	if f.status == nil {
		return Status{}, errUnexpected
	}
	return f.status(ctx, vm)
}

func (f *fake) Points(ctx context.Context, vm string) (Points, error) {
	if f.points == nil {
		return Points{}, errUnexpected
	}
	return f.points(ctx, vm)
}

func (f *fake) Sync(ctx context.Context, vm string, wait bool, progress func(Progress)) (SyncResult, error) {
	if f.sync == nil {
		return SyncResult{}, errUnexpected
	}
	return f.sync(ctx, vm, wait, progress)
}

func (f *fake) Resync(ctx context.Context, vm, disk string, o ResyncOptions, progress func(Progress)) (Resync, error) {
	if f.resync == nil {
		return Resync{}, errUnexpected
	}
	return f.resync(ctx, vm, disk, o, progress)
}

func (f *fake) moved(ctx context.Context, command, vm string, o UnprotectOptions) (Moved, error) {
	if f.move == nil {
		return Moved{}, errUnexpected
	}
	return f.move(ctx, command, vm, o)
}

func (f *fake) Pause(ctx context.Context, vm string) (Moved, error) {
	return f.moved(ctx, "pause", vm, UnprotectOptions{})
}

func (f *fake) Resume(ctx context.Context, vm string) (Moved, error) {
	return f.moved(ctx, "resume", vm, UnprotectOptions{})
}

func (f *fake) Protect(ctx context.Context, vm string) (Moved, error) {
	return f.moved(ctx, "protect", vm, UnprotectOptions{})
}

func (f *fake) Unprotect(ctx context.Context, vm string, o UnprotectOptions) (Moved, error) {
	return f.moved(ctx, "unprotect", vm, o)
}

func (f *fake) Unmount(ctx context.Context, store string, force bool) (Unmounted, error) {
	if f.mount == nil {
		return Unmounted{}, errUnexpected
	}
	return f.mount(ctx, store, force)
}

func (f *fake) Adopt(ctx context.Context, vm string, progress func(Progress)) (Resync, error) {
	if f.adopt == nil {
		return Resync{}, errUnexpected
	}
	return f.adopt(ctx, vm, progress)
}

func (f *fake) JournalCheck(ctx context.Context) error {
	if f.check == nil {
		return errUnexpected
	}
	return f.check(ctx)
}

func (f *fake) JournalDump(ctx context.Context, w io.Writer, _ DumpOptions) error {
	if f.dump == nil {
		return errUnexpected
	}
	return f.dump(ctx, w)
}

// serve runs an appliance's control socket over b and returns its client and a function that stops it and waits.
func serve(t *testing.T, b Backend) (*Client, func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, b, slog.New(slog.DiscardHandler)) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return NewClient(path), stop
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (f *fake) Jobs(_ context.Context, vm string) (Jobs, error) {
	if f.jobs == nil {
		return Jobs{}, errUnexpected
	}
	return f.jobs(vm)
}

func (f *fake) Job(_ context.Context, id string) (Job, error) {
	if f.job == nil {
		return Job{}, errUnexpected
	}
	return f.job(id, nil)
}

func (f *fake) WaitJob(_ context.Context, id string, progress func(Progress)) (Job, error) {
	if f.job == nil {
		return Job{}, errUnexpected
	}
	return f.job(id, progress)
}

func (f *fake) StartJob(_ context.Context, req JobRequest) (Job, error) {
	if f.startJob == nil {
		return Job{}, errUnexpected
	}
	return f.startJob(req)
}

func (f *fake) Preflight(_ context.Context, vm string, progress func(Progress)) (Preflight, error) {
	if f.preflight == nil {
		return Preflight{}, errUnexpected
	}
	return f.preflight(vm, progress)
}
