package pageblob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// lateness is a way to Azurite on which requests can be lost to their sender and yet arrive: it holds what hold says,
// and delivers it when told to, though nobody waits for the answer any more (AZURE.md 1.1).
type lateness struct {
	*httptest.Server
	hold    func(*http.Request) bool
	release chan struct{}
	landed  chan int // the status each held request got
}

func newLateness(t *testing.T, s *azurite.Server, hold func(*http.Request) bool) *lateness {
	t.Helper()
	l := &lateness{hold: hold, release: make(chan struct{}), landed: make(chan int, 1)}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		held := l.hold(r)
		if held {
			<-l.release
		}
		status := forward(w, r, s, body)
		if held {
			l.landed <- status
		}
	}))
	t.Cleanup(l.Close)
	return l
}

// forward sends a request on under a context of its own: its sender may have gone. The signature covers the path and
// not the host.
func forward(w http.ResponseWriter, r *http.Request, s *azurite.Server, body []byte) int {
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, "http://"+hostOf(s)+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return 0
	}
	req.Header = r.Header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // nobody may be there
	return resp.StatusCode
}

func hostOf(s *azurite.Server) string {
	e, err := parseURL(s.Endpoint() + "/c")
	if err != nil {
		panic(err)
	}
	return e.host
}

// behind opens the container of tgt on the way that loses requests, where the caller gives up soon.
func (l *lateness) behind(t *testing.T, s *azurite.Server, box string) *Target {
	t.Helper()
	return open(t, Options{URL: l.URL + "/" + s.Account() + "/" + box, Env: keyOf(s), Stall: 200 * time.Millisecond})
}

func isPut(r *http.Request) bool { return r.Header.Get("x-ms-page-write") != "" }

// TestI7_LatePut: a put whose answer was lost lands after a newer one. Under a sequence number that has been raised
// since it changes nothing; without it would, which the test shows too.
func TestI7_LatePut(t *testing.T) {
	for name, c := range map[string]struct {
		guard target.Guard
		want  byte // of the page in the end
	}{
		"guarded":   {target.Guard{Lease: leaseID, Sequence: 1}, 2},
		"unguarded": {target.Guard{Lease: leaseID, Sequence: -1}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, ctx := emulator(t), t.Context()
			box := "late" + name
			direct := open(t, Options{URL: s.Endpoint() + "/" + box, Env: keyOf(s)})
			ok(t, direct.EnsureContainer(ctx))
			ok(t, direct.CreatePages(ctx, "n", 512, 1))
			ok(t, direct.AcquireLease(ctx, "n", leaseID))

			l := newLateness(t, s, isPut)
			old, young := bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)
			err := l.behind(t, s, box).PutPages(ctx, "n", 0, old, checksum.Of(old), c.guard)
			isStall(t, err, target.Unknown)

			_, err = direct.SetSequence(ctx, "n", 2, leaseID, "")
			ok(t, err)
			ok(t, direct.PutPages(ctx, "n", 0, young, checksum.Of(young), target.Guard{Lease: leaseID, Sequence: 2}))
			close(l.release)
			status := <-l.landed

			p := make([]byte, 512)
			ok(t, direct.ReadPages(ctx, "n", "", 0, p))
			if p[0] != c.want {
				t.Fatalf("the late put got status %d and the page holds %d, want %d", status, p[0], c.want)
			}
		})
	}
}

// TestI5_LateCreate: a record whose creation was lost and that arrives after another attempt changes nothing.
func TestI5_LateCreate(t *testing.T) {
	s, ctx := emulator(t), t.Context()
	direct := open(t, Options{URL: s.Endpoint() + "/latecreate", Env: keyOf(s)})
	ok(t, direct.EnsureContainer(ctx))
	l := newLateness(t, s, func(r *http.Request) bool { return r.Method == http.MethodPut })
	_, err := l.behind(t, s, "latecreate").Create(ctx, "r", []byte("first"))
	isStall(t, err, target.Unknown)
	_, err = direct.Create(ctx, "r", []byte("second"))
	ok(t, err)
	close(l.release)
	if status := <-l.landed; status != http.StatusConflict {
		t.Fatalf("the late creation got status %d", status)
	}
	object, err := direct.Get(ctx, "r")
	if err != nil || string(object.Data) != "second" {
		t.Fatalf("%q, %v", object.Data, err)
	}
	if _, err := direct.Create(ctx, "r", []byte("third")); !errors.Is(err, target.ErrExists) {
		t.Fatal(err)
	}
}

// TestI7_LateReplace: vm.json written by somebody who lost the race changes nothing.
func TestI7_LateReplace(t *testing.T) {
	s, ctx := emulator(t), t.Context()
	direct := open(t, Options{URL: s.Endpoint() + "/latereplace", Env: keyOf(s)})
	ok(t, direct.EnsureContainer(ctx))
	etag, err := direct.Create(ctx, "vm.json", []byte("generation 1"))
	ok(t, err)
	l := newLateness(t, s, func(r *http.Request) bool { return r.Method == http.MethodPut })
	_, err = l.behind(t, s, "latereplace").Replace(ctx, "vm.json", []byte("the old owner"), etag)
	isStall(t, err, target.Unknown)
	_, err = direct.Replace(ctx, "vm.json", []byte("generation 2"), etag)
	ok(t, err)
	close(l.release)
	if status := <-l.landed; status != http.StatusPreconditionFailed {
		t.Fatalf("the late one got status %d", status)
	}
	object, err := direct.Get(ctx, "vm.json")
	if err != nil || string(object.Data) != "generation 2" {
		t.Fatalf("%q, %v", object.Data, err)
	}
}
