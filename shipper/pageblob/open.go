package pageblob

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// DefaultStall is how long a request may not move: no byte of it taken, no answer, no byte of the answer. The service
// itself gives up on most requests after 30 s.
const DefaultStall = 30 * time.Second

// Options say which container, how to prove who we are, and how to get there.
type Options struct {
	URL        string // https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]; http for this machine only
	CAFile     string // PEM file with roots beside the system's; "": none
	Credential Credential

	Stall       time.Duration                                                     // 0: DefaultStall
	Connections int                                                               // kept idle; 0: DefaultConnections
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error) // nil: the system's
	Env         func(string) string                                               // of KindDefault; nil: os.Getenv
	Log         *slog.Logger                                                      // nil: slog.Default

	token azcore.TokenCredential // of tests, in place of azidentity's chain
}

// Target keeps replicas in one container, below one prefix. Its methods may be called at the same time.
type Target struct {
	endpoint endpoint
	sessions *sessions
	sender   *sender
	stall    time.Duration
}

var _ target.Target = (*Target)(nil)

// Open checks the options and reads the credential; it makes no request, so that the appliance starts while the
// network is down. Errors are *SetupError where an operator can mend them, and wrap ErrURL or ErrCredential where they
// are about those. Probe asks the service.
func Open(_ context.Context, opts Options) (*Target, error) {
	e, err := parseURL(opts.URL)
	if err != nil {
		return nil, &SetupError{Code: "target-url", Action: "correct target.url", Err: err}
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Env == nil {
		opts.Env = os.Getenv
	}
	if opts.Stall == 0 {
		opts.Stall = DefaultStall
	}
	client, err := newHTTPClient(opts, e)
	if err != nil {
		return nil, err
	}
	t := &Target{endpoint: e, stall: opts.Stall, sender: &sender{client: client, now: time.Now}}
	t.sessions, err = newSessions(opts, e, t.sender)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func newSessions(opts Options, e endpoint, s *sender) (*sessions, error) {
	source, err := newSource(opts.Credential, e.account, opts.Env, opts.Log)
	if err != nil {
		return nil, err
	}
	all := &sessions{endpoint: e, source: source, token: opts.token, options: clientOptions(s)}
	if source == nil && e.plain() {
		return nil, &SetupError{Code: "token-needs-https", Err: fmt.Errorf("%w: a token is sent over https only, and target.url says http", ErrCredential),
			Action: "use https in target.url, or a credential of another type"}
	}
	if source == nil && opts.token == nil {
		if all.token, err = defaultToken(s.client); err != nil {
			return nil, err
		}
	}
	// A first client now, so that what the SDK refuses is an error of Open.
	_, err = all.current()
	return all, err
}

// clientOptions turns off everything of the SDK that sends more than it was asked to.
func clientOptions(s *sender) container.ClientOptions {
	o := container.ClientOptions{}
	o.Transport = s
	o.Retry = policy.RetryOptions{MaxRetries: -1} // 0 would mean three
	o.Telemetry = policy.TelemetryOptions{ApplicationID: "vhdrelay"}
	o.ExpectContinueBehavior.Mode = container.ExpectContinueModeOff
	return o
}

// Close gives idle connections back.
func (t *Target) Close() error {
	t.sender.client.CloseIdleConnections()
	return nil
}

// String is the URL, without anything secret.
func (t *Target) String() string { return t.endpoint.String() }

// Skew is how far the service's clock is ahead of ours, in whole seconds, as of the last answer; false before one.
func (t *Target) Skew() (time.Duration, bool) {
	skew := t.sender.skew.Load()
	if skew == nil {
		return 0, false
	}
	return *skew, true
}

// op describes one request for its error.
type op struct {
	method string // of target.Target
	name   string // relative to the prefix
	read   bool   // changes nothing
}

// do makes one request within f: with the current session, watched for progress, its error classified.
func (t *Target) do(ctx context.Context, o op, f func(ctx context.Context, c *container.Client) error) error {
	// Nothing has been sent before this line, and nothing is if it fails.
	s, err := t.sessions.current()
	if err := firstError(ended(ctx), err); err != nil {
		return target.Refused(o.method, o.name, err)
	}
	watched, stall := newStall(ctx, t.stall)
	defer stall.stop()
	if err := f(watched, s.client); err != nil {
		return t.classify(o, failure{err: err, ended: ended(watched), session: s})
	}
	return nil
}

// ended says why ctx has ended: its error, and its cause where that is another.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// pages returns the client of a page blob or of one of its snapshots.
func (t *Target) pages(c *container.Client, name, snapshot string) (*pageblob.Client, error) {
	b := c.NewPageBlobClient(t.endpoint.prefix + name)
	if snapshot == "" {
		return b, nil
	}
	return b.WithSnapshot(snapshot)
}
