package plain

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

// sink keeps what is put, by range.
type sink struct {
	mu struct {
		sync.Mutex // held over nothing but the map
		ranges     map[string][]byte
		created    string
	}
	refuse bool
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Query().Get("comp") != "page" {
		s.mu.created = r.Header.Get("x-ms-blob-content-length")
	} else if s.refuse {
		w.WriteHeader(http.StatusForbidden)
		return
	} else {
		s.mu.ranges[r.Header.Get("x-ms-range")] = body
	}
	w.WriteHeader(http.StatusCreated)
}

func start(t *testing.T, refuse bool) (*sink, Blob) {
	s := &sink{refuse: refuse}
	s.mu.ranges = map[string][]byte{}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return s, Blob{Container: srv.URL + "/acct/box", Account: "acct", Key: "c2VjcmV0", Name: "n"}
}

func TestPutSendsEveryByteOnce(t *testing.T) {
	s, to := start(t, false)
	data := make([]byte, 2*pageSize+512)
	for i := range data {
		data[i] = byte(i >> 9)
	}
	if err := Put(t.Context(), to, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	want := []string{"bytes=0-4194303", "bytes=4194304-8388607", "bytes=8388608-8389119"}
	if got := slices.Sorted(maps.Keys(s.mu.ranges)); !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v", got, want)
	}
	if got := slices.Concat(s.mu.ranges[want[0]], s.mu.ranges[want[1]], s.mu.ranges[want[2]]); !bytes.Equal(got, data) {
		t.Error("other bytes came")
	}
	if s.mu.created != "8389120" {
		t.Errorf("created with %q bytes", s.mu.created)
	}
}

func TestPutReportsFailures(t *testing.T) {
	_, refused := start(t, true)
	_, fine := start(t, false)
	badKey := fine
	badKey.Key = "no base64!"
	for name, c := range map[string]struct {
		to   Blob
		size int64
	}{"refused": {refused, 512}, "short source": {fine, 1024}, "key": {badKey, 512}} {
		if err := Put(t.Context(), c.to, bytes.NewReader(make([]byte, 512)), c.size); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
