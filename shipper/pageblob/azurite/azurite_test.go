package azurite

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, opts Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), opts)
	if errors.Is(err, ErrMissing) {
		t.Skip(err)
	}
	ok(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	return s
}

func TestLifeCycle(t *testing.T) {
	s := start(t, Options{Dir: t.TempDir()})
	ctx := t.Context()
	pid, endpoint := s.Pid(), s.Endpoint()
	if pid == 0 || !s.answers(ctx) || !strings.HasPrefix(endpoint, "http://127.0.0.1:") || !strings.HasSuffix(endpoint, "/"+DefaultAccount) {
		t.Fatalf("pid %d at %s", pid, endpoint)
	}
	if _, err := os.Stat(filepath.Join(s.opts.Dir, "__azurite_db_blob__.json")); err != nil {
		t.Fatalf("nothing is kept in Options.Dir: %v", err)
	}
	ok(t, s.Stop())
	ok(t, s.Stop())
	if s.Pid() != 0 || s.answers(ctx) || s.Suspend() == nil {
		t.Fatal("stopped, and still there")
	}
	ok(t, s.Restart(ctx))
	if s.Endpoint() != endpoint || s.Pid() == pid {
		t.Fatalf("pid %d at %s after a restart", s.Pid(), s.Endpoint())
	}
	ok(t, s.Kill())
	if s.answers(ctx) {
		t.Fatal("killed, and still there")
	}
	ok(t, s.Restart(ctx))
	ok(t, s.Suspend())
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if s.answers(short) {
		t.Fatal("suspended, and answers")
	}
	ok(t, s.Resume())
	if !s.answers(ctx) {
		t.Fatal("resumed, and does not answer")
	}
	ok(t, s.Suspend()) // a suspended one can be stopped
	ok(t, s.Stop())
}

func TestOptions(t *testing.T) {
	s := &Server{opts: Options{Cert: "c", Key: "k", OAuth: true, SkipVersions: true, Account: "acct", AccountKeys: []string{"k1", "k2"}}, port: 7}
	args := strings.Join(s.args(), " ")
	for _, want := range []string{"--blobPort 7", "--cert c --key k", "--oauth basic", "--skipApiVersionCheck", "--inMemoryPersistence", "--silent", "--disableTelemetry"} {
		if !strings.Contains(args, want) {
			t.Errorf("%s lacks %s", args, want)
		}
	}
	t.Setenv("AZURITE_ACCOUNTS", "outside:key")
	env := strings.Join(s.env(), "\n")
	if !strings.Contains(env, "AZURITE_ACCOUNTS=acct:k1:k2") || strings.Contains(env, "outside") {
		t.Error("the accounts are not ours")
	}
	if s.Endpoint() != "https://127.0.0.1:7/acct" || s.Account() != "acct" || s.Key() != "k1" {
		t.Error(s.Endpoint(), s.Account(), s.Key())
	}
	s.opts = Options{Dir: "d"}
	if env := strings.Join(s.env(), "\n"); strings.Contains(env, "AZURITE_ACCOUNTS") || !strings.Contains(strings.Join(s.args(), " "), "--location d") || s.Key() != DefaultKey {
		t.Error("the zero value is not the default account")
	}
}

func TestCertificate(t *testing.T) {
	cert, key, err := Certificate(t.TempDir())
	ok(t, err)
	info, err := os.Stat(key)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the key's mode: %v %v", info.Mode(), err)
	}
	s := start(t, Options{Cert: cert, Key: key})
	pem, err := os.ReadFile(cert)
	ok(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	resp, err := client.Get(s.Endpoint())
	ok(t, err)
	ok(t, resp.Body.Close())
	if _, _, err := Certificate(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Fatal("a certificate without a directory")
	}
}

// What ends by itself while starting says why; another port is tried first.
func TestStartOfWhatEnds(t *testing.T) {
	binary := script(t, "echo no luck; exit 3")
	_, err := Start(t.Context(), Options{Binary: binary})
	if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "no luck") {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Options{Binary: filepath.Join(t.TempDir(), "absent")})
	if err == nil || errors.Is(err, ErrExited) {
		t.Fatal(err)
	}
}

// What never answers is killed at the timeout.
func TestStartOfWhatHangs(t *testing.T) {
	_, err := Start(t.Context(), Options{Binary: script(t, "exec sleep 1000"), StartTimeout: 300 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "azurite-blob")
	ok(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	return path
}

func TestFind(t *testing.T) {
	blob := script(t, "")
	node(t)
	t.Setenv(EnvBinary, filepath.Join(filepath.Dir(blob), "azurite"))
	if got, err := Find(); err != nil || got != blob {
		t.Fatalf("%s, %v", got, err)
	}
	ok(t, os.Chmod(blob, 0o600))
	missing(t, "no executable")
	t.Setenv(EnvBinary, filepath.Join(t.TempDir(), "azurite"))
	missing(t, "no such file")

	t.Setenv(EnvBinary, "")
	root := t.TempDir()
	ok(t, os.MkdirAll(filepath.Join(root, "a", "b"), 0o755))
	t.Chdir(filepath.Join(root, "a", "b"))
	missing(t, "make tools")
	ok(t, os.WriteFile(filepath.Join(root, "go.mod"), nil, 0o600))
	ok(t, os.MkdirAll(filepath.Join(root, filepath.Dir(relative)), 0o755))
	want := filepath.Join(root, filepath.Dir(relative), "azurite-blob")
	ok(t, os.WriteFile(want, nil, 0o755))
	if got, err := Find(); err != nil || got != want {
		t.Fatalf("%s, %v", got, err)
	}
	t.Setenv("PATH", t.TempDir())
	missing(t, "no node")
}

// node puts an executable of that name into the path.
func node(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "node"), []byte("#!/bin/sh\n"), 0o755))
	t.Setenv("PATH", dir)
}

func missing(t *testing.T, says string) {
	t.Helper()
	if path, err := Find(); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), says) {
		t.Fatalf("%s, %v, want %q", path, err, says)
	}
}

func TestTail(t *testing.T) {
	var out tail
	for range 1000 {
		_, _ = out.Write([]byte("0123456789"))
	}
	_, _ = out.Write([]byte("the end\n"))
	if s := out.String(); len(s) > tailBytes || !strings.HasSuffix(s, "the end") {
		t.Fatalf("%d bytes, %q", len(s), s[max(0, len(s)-20):])
	}
}
