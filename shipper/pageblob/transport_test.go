package pageblob

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

func TestTransport(t *testing.T) {
	for _, c := range []struct {
		url  string
		idle time.Duration
	}{
		{"https://acct.blob.core.windows.net/box", idleTimeout},
		{"http://127.0.0.1:1/acct/box", 4 * time.Second}, // Azurite closes after 5 s
	} {
		tgt := open(t, Options{URL: c.url, Env: func(string) string { return "AccountKey=" + keyA }})
		tr := tgt.sender.client.Transport.(*http.Transport)
		if tr.IdleConnTimeout != c.idle || tr.MaxIdleConnsPerHost < 64 || tr.WriteBufferSize != 256<<10 || !tr.DisableCompression {
			t.Errorf("%s: %+v", c.url, tr)
		}
		if tr.Protocols.HTTP2() || !tr.Protocols.HTTP1() {
			t.Error("all puts would share one connection")
		}
		if tgt.stall != 30*time.Second || tgt.sender.client.Timeout != 0 {
			t.Errorf("stall %s, timeout %s", tgt.stall, tgt.sender.client.Timeout)
		}
	}
}

// Connections are kept: three waves of 32 puts need no more than 32.
func TestConnectionsAreKept(t *testing.T) {
	const wave = 32
	var opened atomic.Int32
	var arrived sync.WaitGroup // all of a wave are at the service before one is answered
	s := &service{answer: func(w http.ResponseWriter, _ *http.Request) {
		arrived.Done()
		arrived.Wait()
		w.WriteHeader(http.StatusCreated)
	}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.handle))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	tgt := s.target(t, Options{})
	page := make([]byte, 512)
	for range 3 {
		arrived.Add(wave)
		var all sync.WaitGroup
		for range wave {
			all.Go(func() {
				if err := tgt.PutPages(t.Context(), "n", 0, page, checksum.Of(page), guarded); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	if n := opened.Load(); n > wave {
		t.Errorf("%d connections for %d puts at a time", n, wave)
	}
}

// The credential changes while requests are under way: each is signed with one of the two keys and none fails.
func TestRotationUnderLoad(t *testing.T) {
	s := serve(t, nil)
	file := write(t, filepath.Join(t.TempDir(), "key"), keyA)
	tgt := s.target(t, Options{Credential: Credential{Type: KindSharedKey, File: file}})
	var clock atomic.Int64
	tgt.sessions.source.now = func() time.Time { return time.Unix(clock.Add(2), 0) } // looks every time
	page := make([]byte, 512)
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := range 20 {
				if err := tgt.PutPages(t.Context(), fmt.Sprint("n", w), int64(i)*512, page, checksum.Of(page), guarded); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 10 {
		replace(t, file, base64.StdEncoding.EncodeToString([]byte{byte(i), 1, 2}))
	}
	all.Wait()
	if len(s.requests()) != 160 {
		t.Errorf("%d requests", len(s.requests()))
	}
}

// TestFailEachRequest: whichever request of a method that makes several is refused, the method fails with that
// refusal, returns nothing, and makes no request after it.
func TestFailEachRequest(t *testing.T) {
	methods := map[string]func(*Target) (int, error){
		"Ranges": func(tgt *Target) (int, error) {
			r, err := tgt.Ranges(t.Context(), "n", "", 0, 3<<30)
			return len(r), err
		},
		"Resize": func(tgt *Target) (int, error) { return 0, tgt.Resize(t.Context(), "n", 512, guarded) },
		"Snapshots": func(tgt *Target) (int, error) {
			r, err := tgt.Snapshots(t.Context(), "n")
			return len(r), err
		},
	}
	for name, call := range methods {
		t.Run(name, func(t *testing.T) {
			for k := 1; ; k++ {
				n := 0
				s := serve(t, func(w http.ResponseWriter, r *http.Request) {
					if n++; n == k {
						refuse(500, "InternalError")(w, r)
						return
					}
					several(w, r)
				})
				got, err := call(s.target(t, Options{}))
				if err == nil {
					if k < 3 {
						t.Fatalf("only %d requests", k-1)
					}
					return
				}
				if got != 0 || !errors.Is(err, errInternal) || len(s.requests()) != k {
					t.Fatalf("request %d refused: %d results, %d requests, %v", k, got, len(s.requests()), err)
				}
			}
		})
	}
}

// several answers what TestFailEachRequest asks.
func several(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("x-ms-blob-sequence-number", "7")
	w.Header().Set("x-ms-blob-content-length", fmt.Sprint(4<<30))
	q := r.URL.Query()
	switch {
	case q.Get("comp") == "pagelist" && q.Get("marker") == "":
		sendXML(w, "<PageList><PageRange><Start>0</Start><End>511</End></PageRange><NextMarker>m</NextMarker></PageList>")
	case q.Get("comp") == "pagelist":
		sendXML(w, "<PageList></PageList>")
	case q.Get("comp") == "list" && q.Get("marker") == "":
		sendXML(w, "<EnumerationResults><Blobs><Blob><Name>pre/n</Name><Snapshot>"+snapID+"</Snapshot><Properties><Content-Length>512</Content-Length></Properties></Blob></Blobs><NextMarker>m</NextMarker></EnumerationResults>")
	case q.Get("comp") == "list":
		sendXML(w, "<EnumerationResults><Blobs></Blobs></EnumerationResults>")
	}
}
