package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

// proof is a way to prove who we are, and what of it nobody may ever see.
type proof struct {
	kind    string
	content string   // of the secret's file, "" for none
	env     []string // of the appliance
	needles []string
}

// secure is an Azurite with https, bearer tokens and a key nobody else has.
type secure struct {
	*azurite.Server
	account, key, ca string
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSecure(t *testing.T) *secure {
	t.Helper()
	cert, private, err := azurite.Certificate(t.TempDir())
	must(t, err)
	raw := make([]byte, 64)
	_, err = rand.Read(raw)
	must(t, err)
	s := &secure{account: "secretive", key: base64.StdEncoding.EncodeToString(raw), ca: cert}
	s.Server, err = azurite.Start(t.Context(), azurite.Options{Cert: cert, Key: private, OAuth: true, Account: s.account, AccountKeys: []string{s.key}})
	if errors.Is(err, azurite.ErrMissing) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// proofs are the four types of credentials.
func (s *secure) proofs(t *testing.T) []proof {
	t.Helper()
	token, err := rig.AccountSAS(s.account, s.key, time.Now().Add(time.Hour))
	must(t, err)
	q, err := url.ParseQuery(token)
	must(t, err)
	sig := q.Get("sig")
	identity, jwt := managedIdentity(t)
	return []proof{
		{kind: "shared_key", content: s.key + "\n", needles: []string{s.key}},
		{kind: "connection_string", content: "DefaultEndpointsProtocol=https;AccountName=" + s.account + ";AccountKey=" + s.key + ";EndpointSuffix=core.windows.net", needles: []string{s.key}},
		{kind: "sas", content: "?" + token, needles: []string{sig, url.QueryEscape(sig), token}},
		{kind: "default", env: identity, needles: []string{jwt, strings.Split(jwt, ".")[1]}},
	}
}

// managedIdentity is the endpoint that a machine with an identity asks for tokens, and the token it gives: unsigned, of
// the audience and issuer that Azurite looks for.
func managedIdentity(t *testing.T) (env []string, jwt string) {
	t.Helper()
	part := func(v map[string]any) string {
		data, err := json.Marshal(v)
		must(t, err)
		return base64.RawURLEncoding.EncodeToString(data)
	}
	now := time.Now()
	jwt = part(map[string]any{"alg": "none", "typ": "JWT"}) + "." + part(map[string]any{
		"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
		"iat": now.Unix() - 60, "nbf": now.Unix() - 60, "exp": now.Add(time.Hour).Unix(), "ver": "1.0",
	}) + "." + base64.RawURLEncoding.EncodeToString([]byte("unsigned"))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-IDENTITY-HEADER") != "of-the-host" || !strings.HasPrefix(r.URL.Query().Get("resource"), "https://storage.azure.com") {
			http.Error(w, "who asks, and for what?", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":%q,"expires_on":"%d","resource":"https://storage.azure.com","token_type":"Bearer"}`, jwt, now.Add(time.Hour).Unix())
	}))
	t.Cleanup(server.Close)
	return []string{"IDENTITY_ENDPOINT=" + server.URL + "/token", "IDENTITY_HEADER=of-the-host", "AZURE_TOKEN_CREDENTIALS=ManagedIdentityCredential"}, jwt
}

// install makes a rig that proves itself so.
func (p proof) install(t *testing.T, o rig.Options) *rig.Rig {
	t.Helper()
	path, err := binary()
	must(t, err)
	o.Dir, o.Binary, o.Env, o.Debug = t.TempDir(), path, append(o.Env, p.env...), true
	o.Credentials = "{type: " + p.kind + "}"
	if p.content != "" {
		file := filepath.Join(o.Dir, "secret")
		must(t, os.WriteFile(file, []byte(p.content), 0o600))
		o.Credentials = "{type: " + p.kind + ", file: " + file + "}"
	}
	r, err := rig.New(o)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(r.LogFile()) // nothing to show is no news
			for line := range strings.Lines(string(log)) {
				if !strings.Contains(line, "badger: ") {
					t.Log(line)
				}
			}
		}
		must(t, r.Close())
		must(t, rig.Thaw(r.Mount))
	})
	return r
}

// TestE2ECredentials: each type of credential replicates and restores over https, and nothing that the appliance
// shows, logs, keeps or hands to its children has the secret, whatever went wrong meanwhile.
func TestE2ECredentials(t *testing.T) {
	needs(t, "node")
	s := newSecure(t)
	for _, p := range s.proofs(t) {
		t.Run(p.kind, func(t *testing.T) {
			r := p.install(t, rig.Options{URL: s.Endpoint() + "/" + strings.ReplaceAll(p.kind, "_", "-"), CAFile: s.ca, ApplyInterval: 2 * time.Second})
			content := make([]byte, 2<<20)
			_, _ = rand.Read(content)
			must(t, os.MkdirAll(filepath.Join(r.Source, "web"), 0o700))
			must(t, os.WriteFile(filepath.Join(r.Source, "web/os.img"), content, 0o600))
			must(t, r.Start(t.Context()))
			point, err := r.Sync(t.Context(), "web")
			must(t, err)
			seen := everythingShown(t, r, point.Point, content)
			seen["core of a dying process"] = dying(t, r)
			seen["state directory"] = filesBelow(t, r.State)
			for where, text := range seen {
				p.lookFor(t, where, text)
			}
		})
	}
}

// lookFor looks for the secrets.
func (p proof) lookFor(t *testing.T, where string, text []byte) {
	t.Helper()
	for _, needle := range append(p.needles, "SharedKey "+"secretive:", "Bearer ") {
		if bytes.Contains(text, []byte(needle)) {
			t.Errorf("%s has %.12q…: %s", where, needle, around(text, needle))
		}
	}
}

func around(text []byte, needle string) []byte {
	i := bytes.Index(text, []byte(needle))
	return text[max(0, i-200):min(len(text), i+20)]
}

// everythingShown runs what an operator runs, the failing things too, and returns all that could be seen.
func everythingShown(t *testing.T, r *rig.Rig, point string, content []byte) map[string][]byte {
	t.Helper()
	ctx := t.Context()
	out := filepath.Join(r.Dir, "out")
	must(t, r.Export(ctx, "web", point, out))
	got := onlyFile(t, out)
	if !bytes.Equal(got, content) {
		t.Error("what was restored is not what was there")
	}
	must(t, r.Verify(ctx, "web", point))
	seen := map[string][]byte{}
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"points", "web", "--json"}, {"journal", "dump"}, {"check-config", "--print"}} {
		text, err := r.Run(ctx, args...)
		must(t, err)
		seen[strings.Join(args, " ")] = text
	}
	for what, target := range map[string]string{
		"another container": r.URL + "-none",
		"another account":   strings.Replace(r.URL, "/secretive/", "/stranger/", 1),
		"nobody there":      "https://127.0.0.1:1/secretive/box",
	} {
		text, err := r.Run(ctx, "points", "web", "--target", target)
		if err == nil {
			t.Errorf("%s: %s", what, text)
			continue
		}
		seen[what] = []byte(err.Error())
	}
	for _, pid := range family(r.Pid()) {
		seen[fmt.Sprintf("arguments of %d", pid)] = proc(pid, "cmdline")
		seen[fmt.Sprintf("environment of %d", pid)] = proc(pid, "environ")
	}
	log, err := os.ReadFile(r.LogFile())
	must(t, err)
	seen["log"] = log
	return seen
}

// onlyFile is the content of the file that was exported.
func onlyFile(t *testing.T, dir string) []byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "os*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	content, err := os.ReadFile(files[0])
	must(t, err)
	return content
}

// family is a process and its children.
func family(pid int) []int {
	all := []int{pid}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range children {
		text, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, family(child)...)
			}
		}
	}
	return all
}

func proc(pid int, file string) []byte {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)) // it may have ended
	return text
}

// dying ends the appliance with what a panic prints: all goroutines with their arguments.
func dying(t *testing.T, r *rig.Rig) []byte {
	t.Helper()
	must(t, unix.Kill(r.Pid(), unix.SIGQUIT))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := r.Await(ctx, "its end", func() (bool, error) { return false, nil }); ctx.Err() != nil {
		t.Fatal(err)
	}
	must(t, r.Kill())
	text, err := os.ReadFile(r.LogFile())
	must(t, err)
	if !bytes.Contains(text, []byte("goroutine ")) {
		t.Error("no goroutines were printed")
	}
	return text
}

func filesBelow(t *testing.T, dir string) []byte {
	t.Helper()
	var all []byte
	must(t, filepath.WalkDir(dir, func(path string, d iofs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, 64<<20))
		all = append(append(all, path...), text...)
		return err
	}))
	return all
}

// gate lets only requests through that do not have the revoked signature.
type gate struct {
	*httptest.Server
	revoked atomic.Pointer[string] // sig of a SAS
	refused atomic.Int64
}

func newGate(t *testing.T, s *azurite.Server) *gate {
	t.Helper()
	to, err := url.Parse(s.Endpoint())
	must(t, err)
	g := &gate{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host }}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sig := g.revoked.Load(); sig != nil && r.URL.Query().Get("sig") == *sig {
			g.refused.Add(1)
			w.Header().Set("x-ms-request-id", "gate")
			w.Header().Set("x-ms-error-code", "AuthenticationFailed")
			w.WriteHeader(http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

func sigOf(t *testing.T, token string) *string {
	t.Helper()
	q, err := url.ParseQuery(token)
	must(t, err)
	sig := q.Get("sig")
	return &sig
}

// TestE2ERotation: the secret's file is changed while the appliance runs. Whether the file comes first or the old
// secret is refused first, replication goes on with the new one, without a restart and without a word to it.
func TestE2ERotation(t *testing.T) {
	needs(t, "node")
	s, err := azurite.Start(t.Context(), azurite.Options{})
	if errors.Is(err, azurite.ErrMissing) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	g := newGate(t, s)
	var tokens []string
	for i := range 3 {
		token, err := rig.AccountSAS(s.Account(), s.Key(), time.Now().Add(time.Duration(i+1)*time.Hour))
		must(t, err)
		tokens = append(tokens, token)
	}
	r := proof{kind: "sas", content: tokens[0]}.install(t, rig.Options{URL: g.URL + "/" + s.Account() + "/box"})
	file := filepath.Join(r.Dir, "secret")
	must(t, os.MkdirAll(filepath.Join(r.Source, "web"), 0o700))
	must(t, os.WriteFile(filepath.Join(r.Source, "web/os.img"), make([]byte, 1<<20), 0o600))
	must(t, r.Start(t.Context()))
	guest, err := os.OpenFile(filepath.Join(r.Mount, "web/os.img"), os.O_RDWR, 0)
	must(t, err)
	defer func() { _ = guest.Close() }()
	replicates := func(value byte) {
		t.Helper()
		_, err := guest.WriteAt([]byte{value}, 0)
		must(t, err)
		point, err := r.Sync(t.Context(), "web")
		must(t, err)
		out := filepath.Join(r.Dir, "out")
		must(t, r.Export(t.Context(), "web", point.Point, out))
		got := onlyFile(t, out)
		if got[0] != value {
			t.Fatalf("point %s has %d, want %d", point.Point, got[0], value)
		}
	}
	replicates(1)

	// The file first, in one piece; the old secret is refused from then on.
	must(t, os.WriteFile(file+".new", []byte(tokens[1]), 0o600))
	must(t, os.Rename(file+".new", file))
	g.revoked.Store(sigOf(t, tokens[0]))
	replicates(2)
	vm, err := r.VM(t.Context(), "web")
	must(t, err)
	log, err := os.ReadFile(r.LogFile())
	must(t, err)
	if vm.Health == "Critical" || bytes.Contains(log, []byte("stage failed")) {
		t.Errorf("a rotation in order cost a cycle: %+v", vm)
	}

	// The old secret is refused first, and nothing is written that would wake anybody: an operator must act, and writing
	// the file is all it takes, even in two halves.
	must(t, guest.Close())
	must(t, r.Stop())
	g.revoked.Store(sigOf(t, tokens[1]))
	must(t, r.Start(t.Context()))
	reason := awaitReason(t, r, "not-authorized")
	if reason.Severity != "critical" || !strings.Contains(reason.Action, "target.credentials") {
		t.Errorf("%+v", reason)
	}
	half := len(tokens[2]) / 2
	must(t, os.WriteFile(file, []byte(tokens[2][:half]), 0o600))
	awaitLog(t, r, "credential-unusable")
	before := g.refused.Load()
	must(t, os.WriteFile(file, []byte(tokens[2]), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must(t, r.Await(ctx, "a VM that is well", func() (bool, error) {
		vm, err := r.VM(ctx, "web")
		return err == nil && vm.Health == "Normal" && vm.State == "Replicating", nil
	}))
	guest, err = os.OpenFile(filepath.Join(r.Mount, "web/os.img"), os.O_RDWR, 0)
	must(t, err)
	replicates(3)
	t.Logf("%d requests were refused after the file was whole", g.refused.Load()-before)
}

func awaitReason(t *testing.T, r *rig.Rig, code string) (found rig.Reason) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must(t, r.Await(ctx, "reason "+code, func() (bool, error) {
		vm, err := r.VM(ctx, "web")
		for _, reason := range vm.Reasons {
			if reason.Code == code || reason.Cause == code {
				found = reason
				return true, nil
			}
		}
		return false, err
	}))
	return found
}

func awaitLog(t *testing.T, r *rig.Rig, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must(t, r.Await(ctx, text+" in the log", func() (bool, error) {
		log, err := os.ReadFile(r.LogFile())
		return bytes.Contains(log, []byte(text)), err
	}))
}
