package pageblob

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// request is one that a test's service got.
type request struct {
	method string
	path   string
	query  string
	header http.Header
	body   []byte
}

// line is a golden line: method, path and query, then the headers that matter, sorted.
func (r request) line() string {
	var b strings.Builder
	b.WriteString(r.method + " " + r.path)
	if r.query != "" {
		b.WriteString("?" + r.query)
	}
	var headers []string
	for k, v := range r.header {
		k = strings.ToLower(k)
		if strings.HasPrefix(k, "if-") || strings.HasPrefix(k, "x-ms-") && !slices.Contains(unstable, k) || k == "expect" || k == "range" {
			headers = append(headers, k+"="+strings.Join(v, ","))
		}
	}
	slices.Sort(headers)
	return b.String() + " " + strings.Join(headers, " ")
}

var unstable = []string{"x-ms-date", "x-ms-version", "x-ms-client-request-id"}

// service is an in-process blob service of a test: it notes the requests and answers as told.
type service struct {
	*httptest.Server
	answer http.HandlerFunc

	// mu guards the notes; nothing blocks under it.
	mu struct {
		sync.Mutex
		got []request
	}
}

// serve starts a service; answer nil accepts everything.
func serve(t testing.TB, answer http.HandlerFunc) *service {
	t.Helper()
	s := &service{answer: answer}
	s.Server = httptest.NewServer(http.HandlerFunc(s.handle))
	t.Cleanup(s.Close)
	return s
}

func (s *service) handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // a broken request is the client's to report
	s.mu.Lock()
	s.mu.got = append(s.mu.got, request{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Clone(), body})
	s.mu.Unlock()
	w.Header().Set("x-ms-request-id", "r-1")
	w.Header().Set("ETag", `"0x1"`)
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Length", "4096")
	}
	if s.answer != nil {
		s.answer(w, r)
		return
	}
	w.Header().Set("x-ms-snapshot", "2026-01-02T03:04:05.6789012Z")
	w.WriteHeader(map[string]int{http.MethodPut: 201, http.MethodGet: 200, http.MethodHead: 200, http.MethodDelete: 202}[r.Method])
}

// requests returns what came so far.
func (s *service) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mu.got)
}

// last returns the newest request.
func (s *service) last(t testing.TB) request {
	t.Helper()
	all := s.requests()
	if len(all) == 0 {
		t.Fatal("no request came")
	}
	return all[len(all)-1]
}

// target opens a target at the service, with a key unless opts say otherwise.
func (s *service) target(t testing.TB, opts Options) *Target {
	t.Helper()
	opts.URL = s.URL + "/acct/box/pre"
	if opts.Env == nil && opts.Credential.Type == "" {
		opts.Env = func(name string) string {
			if name == "AZURE_STORAGE_KEY" {
				return "c2VjcmV0LWtleQ=="
			}
			return ""
		}
	}
	return open(t, opts)
}

// refuse answers with a status and an error code, in header and body as the service does.
func refuse(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if code != "" {
			w.Header().Set("x-ms-error-code", code)
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>`+code+`</Code><Message>`+r.URL.RawQuery+`</Message></Error>`)
		}
	}
}

// sendXML answers a listing.
func sendXML(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?>`+body)
}
