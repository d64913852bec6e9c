package pageblob

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// clockTolerance is how far clocks may be apart before a refused signature is blamed on them; the service refuses
// requests from 15 minutes on.
const clockTolerance = 10 * time.Minute

// failure is a request that did not succeed, with what is needed to say why.
type failure struct {
	err     error
	ended   error // why the request's context has ended, nil if it has not
	session *session
}

// classify makes the *target.Error of a failure. What is inside the SDK's errors (URLs, bodies) goes no further.
func (t *Target) classify(o op, f failure) error {
	var e *target.Error
	if errors.As(f.err, &e) {
		return e // made within do, by a check of an answer
	}
	var resp *azcore.ResponseError
	switch {
	case errors.As(f.err, &resp):
		e = t.answered(o, f, resp)
	case f.ended == nil && errors.As(f.err, new(*noToken)):
		e = identityError(o, f.err)
	default:
		e = t.unanswered(o, f)
	}
	if o.read {
		e.Outcome = target.Known
	}
	return e
}

// answered classifies an answer by its code, else by its status.
func (t *Target) answered(o op, f failure, resp *azcore.ResponseError) *target.Error {
	v, ok := table[bloberror.Code(resp.ErrorCode)]
	switch {
	case !fromService(resp.RawResponse):
		v = byProxy(resp.StatusCode) // whatever it says of blobs, it does not know
	case !ok:
		v = byStatus(resp.StatusCode)
	}
	e := v.error(o, describe(v.err, resp))
	e.Status = resp.StatusCode
	e.RetryAfter = retryAfter(resp.RawResponse, t.sender.now())
	if known(resp) {
		e.Outcome = target.Known
	}
	if errors.Is(v.err, target.ErrAuth) {
		t.explainAuth(e, f.session)
	}
	return e
}

// nonsense is the error of an answer that contradicts itself or the request.
func nonsense(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errNotService, fmt.Errorf(format, args...))
}

// error makes the error of a verdict; its outcome is unknown until somebody knows better.
func (v verdict) error(o op, err error) *target.Error {
	e := target.Lost(o.method, o.name, err)
	if e.Code == retry.CodeUnclassified {
		e.Class = v.class
	}
	if v.transient {
		e.Class = retry.Recoverable
	}
	if v.code != "" {
		e.Code = v.code
	}
	if v.hint != "" {
		e.Hint = v.hint
	}
	return e
}

// known reports whether the service refused the request for good (AZURE.md 1.1). A proxy's answer proves nothing: the
// request may have gone through before.
func known(resp *azcore.ResponseError) bool {
	s := resp.StatusCode
	return fromService(resp.RawResponse) && (s >= 100 && s < 500 || s == http.StatusServiceUnavailable)
}

// describe adds the service's code and the request's number, which Microsoft's support asks for.
func describe(err error, resp *azcore.ResponseError) error {
	code := resp.ErrorCode
	if code == "" {
		code = http.StatusText(resp.StatusCode)
	}
	if fromService(resp.RawResponse) {
		return fmt.Errorf("%w: %s, request %s", err, code, resp.RawResponse.Header.Get("x-ms-request-id"))
	}
	return fmt.Errorf("%w: %s", err, code)
}

// explainAuth looks for reasons that the code does not tell: a credential just rotated, an expired SAS, a wrong clock.
func (t *Target) explainAuth(e *target.Error, s *session) {
	skew, _ := t.Skew()
	now := t.sender.now().Add(skew)
	var changed bool
	var unusable error
	if t.sessions.source != nil {
		changed, unusable = t.sessions.source.changedSince(s.version)
	}
	switch {
	case changed:
		e.Class, e.Code, e.Hint = retry.Recoverable, "credential-changed", "nothing to do: the credential has just changed and is tried again"
	case unusable != nil:
		e.Class, e.Code = retry.Recoverable, "credential-unusable"
		e.Hint = fmt.Sprintf("write the whole new secret to the file of target.credentials (%v); the one before it is refused", unusable)
	case !s.proof.expires.IsZero() && now.After(s.proof.expires):
		e.Code = "sas-expired"
		e.Hint = fmt.Sprintf("the SAS expired at %s: write a new one to the file of target.credentials, then resume the VM", s.proof.expires.UTC().Format(time.RFC3339))
	case skew.Abs() > clockTolerance:
		e.Class, e.Code = retry.Recoverable, "clock-skew"
		e.Hint = fmt.Sprintf("this machine's clock is off by %s: set it right (timedatectl)", skew)
	}
}

// identityError is recoverable unless the identity service itself refused: at a boot it is often not reachable yet.
func identityError(o op, err error) *target.Error {
	e := target.Refused(o.method, o.name, fmt.Errorf("%w: %w", target.ErrAuth, err))
	e.Code = "no-token"
	e.Hint = "no identity gave a token: give the machine a managed identity, log in, or set target.credentials"
	e.Class = retry.Recoverable
	var failed *azidentity.AuthenticationFailedError
	if !errors.As(err, &failed) || failed.RawResponse == nil {
		return e
	}
	e.Status = failed.RawResponse.StatusCode
	if e.Status >= 400 && e.Status < 500 && e.Status != http.StatusTooManyRequests && e.Status != http.StatusRequestTimeout {
		e.Class = retry.NonRecoverable
	}
	return e
}

// unanswered classifies what is not an answer: the network, TLS, our own limits, the caller's context. Most of it is
// known to package retry.
func (t *Target) unanswered(o op, f failure) *target.Error {
	err := withoutURL(f.err)
	switch {
	case errors.Is(f.ended, errStalled):
		e := target.Lost(o.method, o.name, f.ended)
		e.Class, e.Code = retry.Recoverable, "timeout"
		e.Hint = "nothing to do: it is tried again; look at the line to " + t.endpoint.host
		return e
	case f.ended != nil:
		err = f.ended
	case errors.Is(err, errNotService):
		return byStatus(0).error(o, err)
	case errors.Is(err, errOffHost):
		return verdict{err: errOffHost, class: retry.NonRecoverable, code: "http-off-host", hint: "use https in target.url"}.error(o, err)
	}
	e := target.Lost(o.method, o.name, err)
	if errors.Is(err, http.ErrSchemeMismatch) {
		e.Class, e.Code = retry.NonRecoverable, "tls-protocol"
		e.Hint = "check target.url: " + t.endpoint.host + " does not speak TLS"
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		e.Code = "account-not-resolved"
		e.Hint = fmt.Sprintf("no such name as %s: check the account in target.url, and the name service", t.endpoint.host)
	}
	if e.Code == retry.CodeUnclassified {
		// What is left are answers that do not parse, and a proxy's refusals of a tunnel.
		return byStatus(0).error(o, nonsense("%w", err))
	}
	return e
}

// retryAfter reads how long the service wants to be left alone: seconds or a date, or milliseconds in its own headers.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	if resp == nil {
		return 0
	}
	for _, h := range []struct {
		name string
		unit time.Duration
	}{{"x-ms-retry-after-ms", time.Millisecond}, {"Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		n, err := strconv.Atoi(resp.Header.Get(h.name))
		if err == nil && n > 0 {
			return time.Duration(n) * h.unit
		}
	}
	if at, err := http.ParseTime(resp.Header.Get("Retry-After")); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}
