package pageblob

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

// shared is the Azurite of all tests of this package that need no other; it starts with the first of them.
var shared struct {
	once   sync.Once
	server *azurite.Server
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// emulator returns the shared Azurite, or skips.
func emulator(t testing.TB) *azurite.Server {
	t.Helper()
	shared.once.Do(func() { shared.server, shared.err = azurite.Start(context.Background(), azurite.Options{}) })
	check(t, shared.err)
	return shared.server
}

// start runs an Azurite of the test's own, or skips.
func start(t testing.TB, opts azurite.Options) *azurite.Server {
	t.Helper()
	s, err := azurite.Start(t.Context(), opts)
	check(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, azurite.ErrMissing) {
		t.Skip(err)
	}
	ok(t, err)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keyOf is the environment that makes KindDefault use the server's key.
func keyOf(s *azurite.Server) func(string) string {
	return func(name string) string {
		if name == "AZURE_STORAGE_KEY" {
			return s.Key()
		}
		return ""
	}
}

func noEnv(string) string { return "" }

// quiet is a log nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// open opens a target and closes it with the test.
func open(t testing.TB, opts Options) *Target {
	t.Helper()
	if opts.Log == nil {
		opts.Log = quiet()
	}
	if opts.Env == nil {
		opts.Env = noEnv
	}
	target, err := Open(t.Context(), opts)
	ok(t, err)
	t.Cleanup(func() { ok(t, target.Close()) })
	return target
}

// fresh opens a container of the test's own, with a prefix.
func fresh(t testing.TB, s *azurite.Server) *Target {
	t.Helper()
	target := open(t, Options{URL: s.Endpoint() + "/c" + uuid.NewString() + "/some/prefix", Env: keyOf(s)})
	ok(t, target.EnsureContainer(t.Context()))
	return target
}

// pass lets the time of a synctest bubble pass.
func pass(d time.Duration) { <-time.After(d) }
