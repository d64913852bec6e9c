package control

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// FuzzRequest: whatever is sent to any path of the control API, the answer is JSON, or a stream of it.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/v1/status?vm=web01", "")
	f.Add("POST", "/v1/journal/check", "{}")
	f.Add("POST", "/v1/sync", `{"vm":"web01","wait":true}`)
	f.Add("POST", "/v1/resync", `{"vm":1}`)
	f.Add("POST", "/v1/jobs", `[`)
	handler := Handler(&fake{check: func(context.Context) error { return nil }})
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := newRequest(method, path, body)
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code == 404 || w.Code == 405 || w.Code >= 300 && w.Code < 400 || w.Body.Len() == 0 {
			return // by the mux, in its own words
		}
		for lines := json.NewDecoder(w.Body); lines.More(); {
			var v any
			if err := lines.Decode(&v); err != nil {
				t.Fatalf("%s %q: %d: %v", method, path, w.Code, err)
			}
		}
	})
}

// newRequest is a request as a server reads it.
func newRequest(method, path, body string) (*http.Request, error) {
	r, err := http.NewRequestWithContext(context.Background(), method, "http://appliance"+path, strings.NewReader(body))
	if err == nil && !strings.HasPrefix(r.URL.Path, "/") {
		err = errUnexpected
	}
	return r, err
}
