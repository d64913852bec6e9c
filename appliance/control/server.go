package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// The paths of the API. The version in them changes when a document changes in a way that an old client would misread.
const (
	pathStatus       = "/v1/status"
	pathPoints       = "/v1/points"
	pathSync         = "/v1/sync"
	pathResync       = "/v1/resync"
	pathPause        = "/v1/pause"
	pathResume       = "/v1/resume"
	pathProtect      = "/v1/protect"
	pathUnprotect    = "/v1/unprotect"
	pathUnmount      = "/v1/unmount"
	pathAdopt        = "/v1/adopt"
	pathJournalCheck = "/v1/journal/check"
	pathJournalDump  = "/v1/journal/dump"
)

const (
	headerTimeout = 10 * time.Second
	// drainTimeout is what a stopping appliance gives answers under way; the commands are told that it stops.
	drainTimeout = 5 * time.Second
	maxRequest   = 1 << 20
)

// request is the body of every POST.
type request struct {
	VM      string        `json:"vm"`
	Disk    string        `json:"disk,omitempty"`
	Wait    bool          `json:"wait,omitempty"`
	Store   string        `json:"store,omitempty"`
	Force   bool          `json:"force,omitempty"`
	Options ResyncOptions `json:"options,omitzero"`
	ID      string        `json:"id,omitempty"`
	Job     JobRequest    `json:"job,omitzero"`

	Unprotect UnprotectOptions `json:"unprotect,omitzero"`
	Dump      DumpOptions      `json:"dump,omitzero"`
}

// Serve answers on ln for backend until ctx ends, then closes ln. It returns nil for an orderly end.
func Serve(ctx context.Context, ln net.Listener, backend Backend, log *slog.Logger) error {
	return serveHandler(ctx, ln, Handler(backend), log)
}

// ServeStatus is Serve for an appliance that can do nothing but say how it is: every other request gets refusal.
func ServeStatus(ctx context.Context, ln net.Listener, status func(vm string) (Status, error), refusal *Error, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, r *http.Request) {
		s, err := status(r.URL.Query().Get("vm"))
		answer(w, s.Normal(), err)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, refusal) })
	return serveHandler(ctx, ln, mux, log)
}

func serveHandler(ctx context.Context, ln net.Listener, handler http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return errors.Join(err, ln.Close())
}

// Handler returns the API over backend, for Serve and for tests that need no socket.
func Handler(backend Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, func(w http.ResponseWriter, r *http.Request) {
		s, err := backend.Status(r.Context(), r.URL.Query().Get("vm"))
		answer(w, s.Normal(), err)
	})
	mux.HandleFunc("GET "+pathPoints, func(w http.ResponseWriter, r *http.Request) {
		p, err := backend.Points(r.Context(), r.URL.Query().Get("vm"))
		answer(w, p.Normal(), err)
	})
	mux.HandleFunc("POST "+pathSync, streamed(func(ctx context.Context, q request, s *stream) (any, error) {
		return backend.Sync(ctx, q.VM, q.Wait, s.progress)
	}))
	mux.HandleFunc("POST "+pathResync, streamed(func(ctx context.Context, q request, s *stream) (any, error) {
		return backend.Resync(ctx, q.VM, q.Disk, q.Options, s.progress)
	}))
	for path, move := range map[string]func(context.Context, string) (Moved, error){
		pathPause: backend.Pause, pathResume: backend.Resume, pathProtect: backend.Protect,
	} {
		mux.HandleFunc("POST "+path, streamed(func(ctx context.Context, q request, _ *stream) (any, error) { return move(ctx, q.VM) }))
	}
	mux.HandleFunc("POST "+pathUnprotect, streamed(func(ctx context.Context, q request, _ *stream) (any, error) {
		return backend.Unprotect(ctx, q.VM, q.Unprotect)
	}))
	mux.HandleFunc("POST "+pathUnmount, streamed(func(ctx context.Context, q request, _ *stream) (any, error) {
		return backend.Unmount(ctx, q.Store, q.Force)
	}))
	mux.HandleFunc("POST "+pathAdopt, streamed(func(ctx context.Context, q request, s *stream) (any, error) {
		return backend.Adopt(ctx, q.VM, s.progress)
	}))
	mux.HandleFunc("POST "+pathJournalCheck, streamed(func(ctx context.Context, _ request, _ *stream) (any, error) {
		return struct{}{}, backend.JournalCheck(ctx)
	}))
	mux.HandleFunc("POST "+pathJournalDump, streamed(func(ctx context.Context, q request, s *stream) (any, error) {
		return struct{}{}, backend.JournalDump(ctx, s, q.Dump)
	}))
	handleWatcher(mux, backend)
	return mux
}

// answer writes one document or one error. A client that has gone away cannot be told, so a failed write has no reader.
func answer(w http.ResponseWriter, doc any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e := asError(err)
		w.WriteHeader(httpStatus(e.Exit))
		_ = json.NewEncoder(w).Encode(message{Error: e})
		return
	}
	_ = json.NewEncoder(w).Encode(doc)
}

// httpStatus is for people with curl; our client reads the error itself.
func httpStatus(exit Exit) int {
	switch exit {
	case ExitUsage:
		return http.StatusBadRequest
	case ExitNotFound:
		return http.StatusNotFound
	case ExitRefused:
		return http.StatusConflict
	default:
		return http.StatusInternalServerError
	}
}
