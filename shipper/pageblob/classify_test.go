package pageblob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// put writes one page; it is the request of which the outcome matters.
func put(t testing.TB, tgt *Target) *target.Error {
	t.Helper()
	page := make([]byte, 512)
	err := tgt.PutPages(t.Context(), "n", 0, page, checksum.Of(page), guarded)
	var e *target.Error
	if !errors.As(err, &e) {
		t.Fatalf("no *target.Error: %v", err)
	}
	return e
}

// TestI12_Codes: the answers that callers and operators tell apart.
func TestI12_Codes(t *testing.T) {
	const (
		again = retry.Recoverable
		stop  = retry.NonRecoverable
		bug   = retry.Bug
	)
	tests := []struct {
		status int
		code   string
		want   error
		class  retry.Class
		stable string
	}{
		{404, "BlobNotFound", target.ErrNotFound, stop, "target-not-found"},
		{404, "ContainerNotFound", target.ErrNoContainer, stop, "container-not-found"},
		{409, "ContainerBeingDeleted", target.ErrNoContainer, stop, "container-being-deleted"},
		{409, "BlobAlreadyExists", target.ErrExists, stop, "target-exists"},
		{412, "ConditionNotMet", target.ErrCondition, again, "etag-changed"},
		{412, "SequenceNumberConditionNotMet", target.ErrSequence, again, "sequence-changed"},
		{412, "LeaseIdMissing", target.ErrLeased, stop, "lease-taken"},
		{412, "LeaseIdMismatchWithBlobOperation", target.ErrLeased, stop, "lease-taken"},
		{409, "LeaseIdMismatchWithBlobOperation", target.ErrLeased, stop, "lease-taken"},
		{412, "LeaseNotPresentWithBlobOperation", target.ErrLeaseLost, again, "lease-lost"},
		{412, "LeaseLost", target.ErrLeaseLost, again, "lease-lost"},
		{409, "LeaseIsBreakingAndCannotBeAcquired", target.ErrLeased, again, "lease-breaking"},
		{416, "InvalidPageRange", target.ErrRange, bug, "bad-range"},
		{413, "RequestBodyTooLarge", target.ErrTooLarge, stop, "too-large"},
		{400, "Crc64Mismatch", target.ErrChecksum, again, "checksum-mismatch"},
		{400, "Md5Mismatch", target.ErrChecksum, again, "checksum-mismatch"},
		{409, "SnapshotsPresent", target.ErrSnapshots, again, "has-snapshots"},
		{409, "SnaphotOperationRateExceeded", target.ErrThrottled, again, "snapshot-rate"},
		{409, "SnapshotOperationRateExceeded", target.ErrThrottled, again, "snapshot-rate"},
		{409, "SnapshotCountExceeded", errSnapLimit, stop, "snapshot-count"},
		{403, "AuthenticationFailed", target.ErrAuth, stop, "not-authorized"},
		{403, "AuthorizationFailure", target.ErrAuth, stop, "not-permitted"},
		{403, "AuthorizationPermissionMismatch", target.ErrAuth, stop, "not-permitted"},
		{403, "KeyBasedAuthenticationNotPermitted", target.ErrAuth, stop, "not-permitted"},
		{401, "NoAuthenticationInformation", target.ErrAuth, stop, "not-authorized"},
		{403, "AccountIsDisabled", errAccount, stop, "account-disabled"},
		{409, "BlobImmutableDueToPolicy", errImmutable, stop, "immutable"},
		{400, "InvalidHeaderValue", errVersion, stop, "service-version"},
		{409, "InvalidBlobType", errWrongType, stop, "blob-type"},
		{503, "ServerBusy", target.ErrThrottled, again, retry.CodeThrottled},
		{500, "OperationTimedOut", errInternal, again, "service-timeout"},
		{500, "InternalError", errInternal, again, "service-error"},
		{409, "PendingCopyOperation", errBusy, again, "blob-in-use"},
		// What has no row.
		{429, "", target.ErrThrottled, again, retry.CodeThrottled},
		{403, "SomethingNew", target.ErrAuth, stop, "not-authorized"},
		{400, "SomethingNew", errRequest, bug, "bad-request"},
		{409, "SomethingNew", errBusy, again, "blob-in-use"},
		{502, "", errInternal, again, "service-error"},
		{307, "", errRedirected, stop, "redirected"},
		{200, "", errNotService, again, "not-the-service"},
	}
	for _, c := range tests {
		t.Run(fmt.Sprint(c.status, c.code), func(t *testing.T) {
			e := put(t, serve(t, refuse(c.status, c.code)).target(t, Options{}))
			if !errors.Is(e, c.want) || e.Class != c.class || e.Code != c.stable || e.Status != c.status {
				t.Fatalf("%v, class %v, code %s, status %d", e, e.Class, e.Code, e.Status)
			}
			if e.Class == retry.NonRecoverable && e.Hint == "" {
				t.Fatalf("an operator must act, and nothing says how: %v", e)
			}
		})
	}
}

// TestI12_TableIsComplete: every row names an error, and what has no sentinel has class, code and hint of its own.
func TestI12_TableIsComplete(t *testing.T) {
	for code, v := range table {
		e := v.error(op{method: "PutPages", name: "n"}, fmt.Errorf("%w: %s", v.err, code))
		if e.Code == "" || e.Code == retry.CodeUnclassified {
			t.Errorf("%s has no code", code)
		}
		if e.Class == retry.NonRecoverable && e.Hint == "" {
			t.Errorf("%s: an operator must act, and nothing says how", code)
		}
	}
	for status := 0; status < 600; status++ {
		v := byStatus(status)
		if e := v.error(op{}, v.err); e.Code == "" || e.Code == retry.CodeUnclassified {
			t.Errorf("status %d has no code", status)
		}
	}
}

// TestOutcome: known are only the service's own answers from 100 to 499, and 503 (AZURE.md 1.1).
func TestOutcome(t *testing.T) {
	for status, want := range map[int]target.Outcome{
		307: target.Known, 400: target.Known, 404: target.Known, 408: target.Known, 412: target.Known, 429: target.Known, 499: target.Known,
		500: target.Unknown, 501: target.Unknown, 502: target.Unknown, 503: target.Known, 504: target.Unknown,
		200: target.Known, // refused to be what a put is answered with; a 201 alone is success
	} {
		if e := put(t, serve(t, refuse(status, "")).target(t, Options{})); e.Outcome != want {
			t.Errorf("status %d: outcome %v", status, e.Outcome)
		}
	}
}

// A proxy's refusal proves nothing: the request may have gone through before.
func TestOutcomeOfAProxysAnswer(t *testing.T) {
	for _, status := range []int{200, 201, 403, 408, 503} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Del("x-ms-request-id")
			w.WriteHeader(status)
		})
		if e := put(t, s.target(t, Options{})); e.Outcome != target.Unknown {
			t.Errorf("status %d: %v", status, e)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name, value string
		want        time.Duration
	}{
		{"Retry-After", "7", 7 * time.Second},
		{"Retry-After", at.Add(time.Minute).Format(http.TimeFormat), time.Minute},
		{"Retry-After", at.Add(-time.Minute).Format(http.TimeFormat), 0},
		{"Retry-After", "soon", 0},
		{"Retry-After", "-3", 0},
		{"x-ms-retry-after-ms", "1500", 1500 * time.Millisecond},
		{"Retry-After-Ms", "20", 20 * time.Millisecond},
	} {
		resp := &http.Response{Header: http.Header{}}
		resp.Header.Set(c.name, c.value)
		if got := retryAfter(resp, at); got != c.want {
			t.Errorf("%s: %s is %s, want %s", c.name, c.value, got, c.want)
		}
	}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "9")
		refuse(503, "ServerBusy")(w, r)
	})
	if e := put(t, s.target(t, Options{})); e.RetryAfter != 9*time.Second || retryAfter(nil, at) != 0 {
		t.Errorf("retry after %s", e.RetryAfter)
	}
}

func TestSuccessUnless(t *testing.T) {
	tgt := serve(t, refuse(404, "ContainerNotFound")).target(t, Options{})
	for what, err := range map[string]error{
		"Delete":         tgt.Delete(t.Context(), "n"),
		"DeleteIf":       tgt.DeleteIf(t.Context(), "n", `"0x9"`),
		"DeletePages":    tgt.DeletePages(t.Context(), "n", leaseID),
		"DeleteSnapshot": tgt.DeleteSnapshot(t.Context(), "n", snapID),
		"Probe":          tgt.Probe(t.Context()),
	} {
		var e *target.Error
		if !errors.As(err, &e) || !errors.Is(err, target.ErrNoContainer) || !strings.Contains(e.Hint, "create the container") {
			t.Errorf("%s: a container that is gone is not a blob that is gone: %v", what, err)
		}
	}
}

func TestNetworkErrors(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	plain := serve(t, nil)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // it reports our refusal
	secure.StartTLS()
	defer secure.Close()
	for _, c := range []struct {
		name  string
		opts  Options
		class retry.Class
		code  string
	}{
		{"refused", Options{URL: closed.URL + "/acct/box"}, retry.Recoverable, "connection-refused"},
		{"unknown authority", Options{URL: secure.URL + "/acct/box"}, retry.NonRecoverable, "tls-certificate"},
		{"not TLS", Options{URL: strings.Replace(plain.URL, "http:", "https:", 1) + "/acct/box"}, retry.NonRecoverable, "tls-protocol"},
		{"no such name", Options{URL: "https://acct.blob.core.windows.net/box", DialContext: noSuchHost}, retry.Recoverable, "account-not-resolved"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Env = func(name string) string {
				return map[string]string{"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=topsecret"}[name]
			}
			e := put(t, open(t, c.opts))
			if e.Class != c.class || e.Code != c.code || e.Outcome != target.Unknown || e.Hint == "" {
				t.Fatalf("class %v, code %s, %v, hint %q", e.Class, e.Code, e, e.Hint)
			}
			if text := fmt.Sprintf("%+v", e.Err) + e.Error() + e.Hint; strings.Contains(text, "topsecret") {
				t.Fatalf("the SAS leaked: %s", text)
			}
		})
	}
}

func noSuchHost(context.Context, string, string) (net.Conn, error) {
	return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "acct.blob.core.windows.net", IsNotFound: true}}
}

// The caller's context ends: the class is the context's, the outcome unknown once something was sent.
func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stopping := errors.New("the appliance stops")
	s := serve(t, func(http.ResponseWriter, *http.Request) { cancel(stopping); <-t.Context().Done() })
	page := make([]byte, 512)
	tgt := s.target(t, Options{})
	err := tgt.PutPages(ctx, "n", 0, page, checksum.Of(page), guarded)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, stopping) || target.OutcomeOf(err) != target.Unknown {
		t.Fatalf("cancelled under way: %v", err)
	}
	s.CloseClientConnections()
	err = tgt.PutPages(ctx, "n", 0, page, checksum.Of(page), guarded)
	if !errors.Is(err, context.Canceled) || target.OutcomeOf(err) != target.Known || len(s.requests()) != 1 {
		t.Fatalf("cancelled beforehand: %v", err)
	}
}

func TestClockSkew(t *testing.T) {
	ahead := 20 * time.Minute
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		refuse(403, "AuthenticationFailed")(w, r)
	})
	tgt := s.target(t, Options{})
	if _, known := tgt.Skew(); known {
		t.Fatal("a skew before any answer")
	}
	e := put(t, tgt)
	if e.Code != "clock-skew" || e.Class != retry.Recoverable || !strings.Contains(e.Hint, "clock") {
		t.Fatalf("%v: %s: %s", e, e.Code, e.Hint)
	}
	if skew, known := tgt.Skew(); !known || (skew-ahead).Abs() > 2*time.Second {
		t.Fatalf("skew %s", skew)
	}
}

func TestExpiredSAS(t *testing.T) {
	s := serve(t, refuse(403, "AuthenticationFailed"))
	tgt := s.target(t, Options{Env: func(name string) string {
		return map[string]string{"AZURE_STORAGE_SAS_TOKEN": "?sv=1&se=2020-01-02T03:04:05Z&sig=abc"}[name]
	}})
	if e := put(t, tgt); e.Code != "sas-expired" || e.Class != retry.NonRecoverable || !strings.Contains(e.Hint, "2020-01-02T03:04:05Z") {
		t.Fatalf("%s: %s", e.Code, e.Hint)
	}
}

// fakeToken is a token credential of a test.
type fakeToken struct {
	token string
	err   error
}

func (f fakeToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: f.token, ExpiresOn: time.Now().Add(time.Hour)}, f.err
}

func TestNoToken(t *testing.T) {
	answer := func(status int) *http.Response {
		return &http.Response{StatusCode: status, Body: http.NoBody, Header: http.Header{}}
	}
	for _, c := range []struct {
		err   error
		class retry.Class
	}{
		{errors.New("no identity is available"), retry.Recoverable},
		{&azidentity.AuthenticationFailedError{}, retry.Recoverable},
		{&azidentity.AuthenticationFailedError{RawResponse: answer(500)}, retry.Recoverable},
		{&azidentity.AuthenticationFailedError{RawResponse: answer(429)}, retry.Recoverable},
		{&azidentity.AuthenticationFailedError{RawResponse: answer(401)}, retry.NonRecoverable},
	} {
		tgt := open(t, Options{URL: "https://acct.blob.core.windows.net/box", token: fakeToken{err: c.err}, DialContext: noSuchHost})
		e := put(t, tgt)
		if !errors.Is(e, target.ErrAuth) || e.Class != c.class || e.Code != "no-token" || e.Outcome != target.Known || e.Hint == "" {
			t.Errorf("%v: class %v, code %s", e, e.Class, e.Code)
		}
	}
}

// TestSecretsStayInside: neither a key, nor a SAS, nor what the service says about them is in an error.
func TestSecretsStayInside(t *testing.T) {
	s := serve(t, refuse(403, string(bloberror.AuthenticationFailed))) // it echoes the query
	tgt := s.target(t, Options{Env: func(name string) string {
		return map[string]string{"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=topsecret"}[name]
	}})
	e := put(t, tgt)
	if !strings.Contains(s.last(t).query, "sig=topsecret") {
		t.Fatal("the SAS was not sent")
	}
	text := e.Error() + e.Hint + fmt.Sprintf("%v %+v %#v", e.Err, e.Err, e.Err) + tgt.String() + fmt.Sprintf("%+v", tgt)
	if strings.Contains(text, "topsecret") {
		t.Fatalf("the SAS leaked: %s", text)
	}
	if strings.Contains(fmt.Sprintf("%#v", tgt.sessions.source), "topsecret") {
		t.Fatal("the SAS can be printed from within")
	}
}

// A bearer token is never sent without TLS, and the start says so.
func TestTokenWithoutTLS(t *testing.T) {
	s := serve(t, nil)
	_, err := Open(t.Context(), Options{URL: s.URL + "/acct/box", Env: noEnv, token: fakeToken{token: "t"}})
	class, code, cause, action := retry.Describe(err)
	if !errors.Is(err, ErrCredential) || class != retry.NonRecoverable || code != "token-needs-https" || !strings.Contains(cause, "https") || !strings.Contains(action, "use https") {
		t.Errorf("%v, %s, %s, %s", class, code, cause, action)
	}
	if len(s.requests()) != 0 {
		t.Error("a token went over http")
	}
}
