package rig

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

// The signature is accepted, which only an absent blob shows without a writer: 404, not 403.
func TestAzureTarget(t *testing.T) {
	target, err := AzureTarget(t.Context(), "")
	if errors.Is(err, azurite.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := target.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !strings.Contains(target.URL, target.Proxy.Addr()) || !strings.HasSuffix(target.URL, "/"+Container) {
		t.Fatal(target.URL)
	}
	to := filepath.Join(t.TempDir(), "x")
	err = target.Download(t.Context(), "a b/c", to)
	if err == nil || !isStatus(err, http.StatusNotFound) {
		t.Fatalf("%v, want 404", err)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a failed download leaves a file")
	}
	target.Key = "AAAA"
	if err := target.Download(t.Context(), "x", to); !isStatus(err, http.StatusForbidden) {
		t.Fatalf("%v, want 403", err)
	}
	target.Key = "no base64!"
	if err := target.Download(t.Context(), "x", to); err == nil {
		t.Fatal("a key that is none")
	}
	if target.Proxy.Sent() == 0 {
		t.Fatal("the proxy was not used")
	}
}

func isStatus(err error, code int) bool {
	answer, ok := errors.AsType[*statusError](err)
	return ok && answer.code == code
}
