package pageblob

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// session is a container client with one state of the credential. A changed credential makes a new one; requests
// under way end with the old.
type session struct {
	client  *container.Client
	version int // of the source's proof
	proof   proof
}

// sessions hands out the session to use now.
type sessions struct {
	endpoint endpoint
	source   *source                // nil: token
	token    azcore.TokenCredential // nil with a source
	options  container.ClientOptions

	// mu guards the current session; making another takes no I/O.
	mu struct {
		sync.Mutex
		current *session
	}
}

// current returns the session for the proof that is valid now.
func (s *sessions) current() (*session, error) {
	var (
		p       proof
		version int
	)
	if s.source != nil {
		p, version = s.source.current()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.mu.current; c != nil && c.version == version {
		return c, nil
	}
	client, err := s.connect(p)
	if err != nil {
		return nil, err
	}
	s.mu.current = &session{client: client, version: version, proof: p}
	return s.mu.current, nil
}

// connect makes the client for a proof; the SDK's errors here are about malformed input and hold no secret.
func (s *sessions) connect(p proof) (*container.Client, error) {
	options := s.options
	switch {
	case s.source == nil:
		return container.NewClient(s.endpoint.container, tokens{s.token}, &options)
	case !p.key.IsZero():
		cred, err := blob.NewSharedKeyCredential(s.endpoint.account, p.key.Reveal())
		if err != nil {
			return nil, fmt.Errorf("%w: not an account key", ErrCredential)
		}
		return container.NewClientWithSharedKeyCredential(s.endpoint.container, cred, &options)
	}
	options.PerRetryPolicies = append(options.PerRetryPolicies[:len(options.PerRetryPolicies):len(options.PerRetryPolicies)], signer{p.sas})
	return container.NewClientWithNoCredential(s.endpoint.container, &options)
}

// signer appends a SAS token to each request. In the client's URL the SDK would take it apart and put it together
// again for every snapshot.
type signer struct{ sas Secret }

// Do appends the token.
func (s signer) Do(req *policy.Request) (*http.Response, error) {
	u := req.Raw().URL
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += s.sas.Reveal()
	return req.Next()
}

// defaultToken is azidentity's chain: environment, workload identity, managed identity, command-line tools. It makes
// no request before the first token is needed.
func defaultToken(client *http.Client) (azcore.TokenCredential, error) {
	cred, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
		ClientOptions: policy.ClientOptions{Transport: client},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCredential, err)
	}
	return cred, nil
}

// noToken marks the error of a request that was never sent because no identity gave a token; some of azidentity's own
// types are not exported.
type noToken struct{ err error }

func (e *noToken) Error() string { return "no token: " + e.err.Error() }

// Unwrap makes azidentity's types visible.
func (e *noToken) Unwrap() error { return e.err }

// tokens marks the errors of a token credential.
type tokens struct{ azcore.TokenCredential }

// GetToken gets a token or an error that is a *noToken.
func (t tokens) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := t.TokenCredential.GetToken(ctx, o)
	if err != nil {
		return token, &noToken{err}
	}
	return token, nil
}
