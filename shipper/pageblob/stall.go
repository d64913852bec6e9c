package pageblob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"
)

// errStalled is the cause of a request that was given up because nothing of it moved.
var errStalled = errors.New("no progress")

type stallKey struct{}

// stall ends a request's context when nothing has moved for limit: no byte of the request was taken, no answer came,
// no byte of the answer arrived.
type stall struct {
	timer *time.Timer
	limit time.Duration
	end   context.CancelCauseFunc
}

// newStall starts the watch over one request. The caller calls stop.
func newStall(parent context.Context, limit time.Duration) (context.Context, *stall) {
	ctx, cancel := context.WithCancelCause(parent)
	s := &stall{limit: limit, end: cancel}
	s.timer = time.AfterFunc(limit, func() { cancel(fmt.Errorf("%w for %s", errStalled, limit)) })
	return context.WithValue(ctx, stallKey{}, s), s
}

// stallOf returns the watch of a context; nil, which does nothing, for a request nobody watches.
func stallOf(ctx context.Context) *stall {
	s, _ := ctx.Value(stallKey{}).(*stall)
	return s
}

func (s *stall) stop() {
	s.timer.Stop()
	s.end(nil)
}

func (s *stall) progress() {
	if s != nil {
		s.timer.Reset(s.limit)
	}
}

func (s *stall) watch(body io.ReadCloser) io.ReadCloser {
	if s == nil || body == nil {
		return body
	}
	return &watched{ReadCloser: body, stall: s}
}

// watched is a body of which every read is progress.
type watched struct {
	io.ReadCloser
	stall *stall
}

// Read reads and notes that it did.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		w.stall.progress()
	}
	return n, err
}

// withoutURL takes off what net/http puts around an error: the URL in it may hold a SAS.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
