package pageblob

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// later moves the source's clock on, so that it looks at its file again.
func later(tgt *Target) {
	now := tgt.sessions.source.now
	tgt.sessions.source.now = func() time.Time { return now().Add(2 * recheckInterval) }
}

func TestContainerMissing(t *testing.T) {
	s := emulator(t)
	tgt := open(t, Options{URL: s.Endpoint() + "/missing", Env: keyOf(s)})
	_, get := tgt.Get(t.Context(), "n")
	_, list := tgt.Snapshots(t.Context(), "n")
	_, props := tgt.Properties(t.Context(), "n", "")
	for what, err := range map[string]error{"Probe": tgt.Probe(t.Context()), "Get": get, "Snapshots": list, "Properties": props} {
		var e *target.Error
		if !errors.As(err, &e) || !errors.Is(err, target.ErrNoContainer) || e.Class != retry.NonRecoverable || e.Hint != hintContainer {
			t.Errorf("%s: %v", what, err)
		}
	}
	ok(t, tgt.EnsureContainer(t.Context()))
	ok(t, tgt.EnsureContainer(t.Context()))
	ok(t, tgt.Probe(t.Context()))
}

// TestKeyRotation: the account's keys are exchanged while we run; a refusal looks at the file at once.
func TestKeyRotation(t *testing.T) {
	second := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{2}, 64))
	s := start(t, azurite.Options{Account: "acct", AccountKeys: []string{azurite.DefaultKey, second}})
	file := write(t, filepath.Join(t.TempDir(), "key"), azurite.DefaultKey)
	tgt := open(t, Options{URL: s.Endpoint() + "/box", Credential: Credential{Type: KindSharedKey, File: file}})
	ok(t, tgt.EnsureContainer(t.Context()))
	replace(t, file, second)
	later(tgt)
	ok(t, tgt.Probe(t.Context()))
	if _, version := tgt.sessions.source.current(); version != 1 {
		t.Fatal("the second key is not in use")
	}
	replace(t, file, base64.StdEncoding.EncodeToString([]byte("wrong")))
	later(tgt)
	refused(t, tgt.Probe(t.Context()), retry.NonRecoverable, "not-permitted") // the service: not-authorized
	replace(t, file, "AccountKey="+second)
	refused(t, tgt.Probe(t.Context()), retry.Recoverable, "credential-unusable") // somebody is at work on it
	replace(t, file, second)
	refused(t, tgt.Probe(t.Context()), retry.Recoverable, "credential-changed")
	ok(t, tgt.Probe(t.Context()))
}

func refused(t *testing.T, err error, class retry.Class, code string) {
	t.Helper()
	var e *target.Error
	if !errors.As(err, &e) || !errors.Is(err, target.ErrAuth) || e.Class != class || e.Code != code {
		t.Fatalf("%v, want %v %s", err, class, code)
	}
}

// accountToken signs a SAS of an account's whole blob service.
func accountToken(t *testing.T, s *azurite.Server, permissions string, expires time.Time) string {
	t.Helper()
	cred, err := blob.NewSharedKeyCredential(s.Account(), s.Key())
	ok(t, err)
	q, err := sas.AccountSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: expires, Permissions: permissions, ResourceTypes: "co",
	}.SignWithSharedKey(cred)
	ok(t, err)
	return q.Encode()
}

// containerToken signs a SAS of one container.
func containerToken(t *testing.T, s *azurite.Server, box, permissions string, expires time.Time) string {
	t.Helper()
	cred, err := blob.NewSharedKeyCredential(s.Account(), s.Key())
	ok(t, err)
	q, err := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: expires, Permissions: permissions, ContainerName: box,
	}.SignWithSharedKey(cred)
	ok(t, err)
	return q.Encode()
}

// everything calls each method but Resize once, as a credential must allow it.
func everything(ctx context.Context, t *testing.T, tgt *Target) {
	t.Helper()
	etag, err := tgt.Create(ctx, "o", []byte("x"))
	ok(t, err)
	_, err = tgt.Replace(ctx, "o", []byte("y"), etag)
	ok(t, err)
	_, err = tgt.Get(ctx, "o")
	ok(t, err)
	ok(t, tgt.CreatePages(ctx, "p q", 1024, 0))
	ok(t, tgt.AcquireLease(ctx, "p q", leaseID))
	page := bytes.Repeat([]byte{9}, 512)
	ok(t, tgt.PutPages(ctx, "p q", 512, page, checksum.Of(page), target.Guard{Lease: leaseID}))
	ok(t, tgt.ClearPages(ctx, "p q", 0, 512, target.Guard{Lease: leaseID}))
	etag, err = tgt.SetSequence(ctx, "p q", 1, leaseID, "")
	ok(t, err)
	id, err := tgt.Snapshot(ctx, "p q", leaseID, etag, map[string]string{"epoch": "1"})
	ok(t, err)
	got := make([]byte, 512)
	ok(t, tgt.ReadPages(ctx, "p q", id, 512, got))
	ranges, err := tgt.Ranges(ctx, "p q", id, 0, 1024)
	ok(t, err)
	snaps, err := tgt.Snapshots(ctx, "p q")
	ok(t, err)
	if !bytes.Equal(got, page) || len(ranges) != 1 || len(snaps) != 1 {
		t.Fatalf("ranges %v, snapshots %v", ranges, snaps)
	}
	ok(t, tgt.DeleteSnapshot(ctx, "p q", id))
	ok(t, tgt.ReleaseLease(ctx, "p q", leaseID))
	ok(t, tgt.BreakLease(ctx, "p q"))
	ok(t, tgt.DeletePages(ctx, "p q", ""))
	ok(t, tgt.Delete(ctx, "o"))
}

// TestSAS: the methods work with a token, also where a query is there already; and it is exchanged like a key.
func TestSAS(t *testing.T) {
	s := emulator(t)
	file := write(t, filepath.Join(t.TempDir(), "sas"), "?"+accountToken(t, s, "rwdlac", time.Now().Add(time.Hour)))
	tgt := open(t, Options{URL: s.Endpoint() + "/sasbox/p", Credential: Credential{Type: KindSAS, File: file}})
	ok(t, tgt.EnsureContainer(t.Context()))
	everything(t.Context(), t, tgt)
	replace(t, file, accountToken(t, s, "rl", time.Now().Add(time.Hour)))
	later(tgt)
	ok(t, tgt.Probe(t.Context()))
	_, err := tgt.Create(t.Context(), "o", nil)
	refused(t, err, retry.NonRecoverable, "not-permitted")
	replace(t, file, accountToken(t, s, "rwdlac", time.Now().Add(-time.Hour)))
	later(tgt)
	err = tgt.Probe(t.Context())
	refused(t, err, retry.NonRecoverable, "sas-expired")
	if text := err.Error(); strings.Contains(text, "sig=") {
		t.Fatalf("leaked: %s", text)
	}
}

// The token of a container does what is needed too. (Azurite fails a Resize with the token of an account, and the
// read of a snapshot with that of a container; the service does neither.)
func TestSASOfAContainer(t *testing.T) {
	s := emulator(t)
	ok(t, open(t, Options{URL: s.Endpoint() + "/onebox", Env: keyOf(s)}).EnsureContainer(t.Context()))
	file := write(t, filepath.Join(t.TempDir(), "sas"), containerToken(t, s, "onebox", "racwdl", time.Now().Add(time.Hour)))
	tgt := open(t, Options{URL: s.Endpoint() + "/onebox", Credential: Credential{Type: KindSAS, File: file}})
	ok(t, tgt.Probe(t.Context()))
	ok(t, tgt.CreatePages(t.Context(), "n", 512, 0))
	ok(t, tgt.Resize(t.Context(), "n", 1024, target.Guard{}))
	ok(t, tgt.DeletePages(t.Context(), "n", ""))
}

func TestConnectionString(t *testing.T) {
	s := emulator(t)
	cs := "DefaultEndpointsProtocol=http;AccountName=" + s.Account() + ";AccountKey=" + s.Key() + ";BlobEndpoint=http://127.0.0.1:1/ignored;"
	file := write(t, filepath.Join(t.TempDir(), "cs"), cs)
	tgt := open(t, Options{URL: s.Endpoint() + "/csbox", Credential: Credential{Type: KindConnectionString, File: file}})
	ok(t, tgt.EnsureContainer(t.Context()))
	everything(t.Context(), t, tgt)
}

// secureAzurite serves https and takes bearer tokens.
func secureAzurite(t *testing.T) (*azurite.Server, string) {
	t.Helper()
	cert, key, err := azurite.Certificate(t.TempDir())
	ok(t, err)
	return start(t, azurite.Options{Cert: cert, Key: key, OAuth: true}), cert
}

// TestTLS: https with roots of our own, and a bearer token.
func TestTLS(t *testing.T) {
	s, ca := secureAzurite(t)
	with := open(t, Options{URL: s.Endpoint() + "/box", CAFile: ca, Env: keyOf(s)})
	ok(t, with.EnsureContainer(t.Context()))
	everything(t.Context(), t, with)

	without := open(t, Options{URL: s.Endpoint() + "/box", Env: keyOf(s)})
	var e *target.Error
	if err := without.Probe(t.Context()); !errors.As(err, &e) || e.Class != retry.NonRecoverable || e.Code != "tls-certificate" {
		t.Fatalf("without the root: %v", err)
	}

	token := open(t, Options{URL: s.Endpoint() + "/box/p", CAFile: ca, token: fakeToken{token: bearer(t, time.Hour)}})
	everything(t.Context(), t, token)
	old := open(t, Options{URL: s.Endpoint() + "/box/p", CAFile: ca, token: fakeToken{token: bearer(t, -time.Hour)}})
	err := old.Probe(t.Context())
	if !errors.Is(err, target.ErrAuth) {
		t.Fatalf("an expired token: %v", err)
	}
}

// bearer makes the unsigned token that Azurite takes at its level basic.
func bearer(t *testing.T, validity time.Duration) string {
	t.Helper()
	part := func(v any) string {
		data, err := json.Marshal(v)
		ok(t, err)
		return base64.RawURLEncoding.EncodeToString(data)
	}
	now := time.Now()
	return part(map[string]any{"alg": "none", "typ": "JWT"}) + "." + part(map[string]any{
		"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
		"iat": now.Unix() - 7200, "nbf": now.Unix() - 7200, "exp": now.Add(validity).Unix(), "ver": "1.0",
	}) + "." + base64.RawURLEncoding.EncodeToString([]byte("signature"))
}

func TestCAFile(t *testing.T) {
	dir := t.TempDir()
	for what, file := range map[string]string{"absent": filepath.Join(dir, "absent"), "no PEM": write(t, filepath.Join(dir, "x"), "x")} {
		_, err := Open(t.Context(), Options{URL: "https://127.0.0.1/acct/box", CAFile: file, Env: noEnv, token: fakeToken{}})
		if err == nil || !strings.Contains(err.Error(), "target.ca_file") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The default chain is made without a request, and with no identity the error says what to do.
func TestDefaultChain(t *testing.T) {
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"} {
		t.Setenv(name, "")
	}
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential") // of the chain only what makes no request
	tgt := open(t, Options{URL: "https://acct.blob.core.windows.net/box"})
	if e := put(t, tgt); e.Code != "no-token" || e.Class != retry.Recoverable || !errors.Is(e, target.ErrAuth) {
		t.Fatalf("%v", e)
	}
}

// A server that goes away and comes back: the errors in between are recoverable, and then everything goes on.
func TestOutage(t *testing.T) {
	s := start(t, azurite.Options{Dir: t.TempDir()})
	tgt := fresh(t, s)
	ok(t, tgt.CreatePages(t.Context(), "n", 512, 0))
	ok(t, s.Stop())
	e := put(t, tgt)
	if e.Class != retry.Recoverable || e.Outcome != target.Unknown {
		t.Fatalf("%v", e)
	}
	ok(t, s.Restart(t.Context()))
	props, err := tgt.Properties(t.Context(), "n", "")
	if err != nil || props.Size != 512 {
		t.Fatalf("after the outage: %+v, %v", props, err)
	}
}

// A server that hangs is a stall, and what it does later is the caller's reason to fence.
func TestHang(t *testing.T) {
	s := start(t, azurite.Options{})
	tgt := open(t, Options{URL: s.Endpoint() + "/box", Env: keyOf(s), Stall: 300 * time.Millisecond})
	ok(t, tgt.EnsureContainer(t.Context()))
	ok(t, s.Suspend())
	_, err := tgt.Create(t.Context(), "n", []byte("late"))
	isStall(t, err, target.Unknown)
	ok(t, s.Resume())
}
