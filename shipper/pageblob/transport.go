package pageblob

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

const (
	// DefaultConnections is how many idle connections to the endpoint are kept: as many as requests may be in flight
	// (8–16 a blob), else each put opens one, with a TLS handshake.
	DefaultConnections = 64

	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	bufferSize       = 256 << 10        // of a connection, each way; the default of 4 KiB costs 1,000 system calls a put
	idleTimeout      = 60 * time.Second // below the service's own, which is minutes
	idleLoopback     = 4 * time.Second  // below Azurite's 5 s: a request on a connection it just closed is lost
)

// errNotService is an answer that did not come from a blob service.
var errNotService = errors.New("answer is not from a blob service, but from a proxy or another server")

// newHTTPClient makes the client that all requests of a Target share. Redirects are answers, not instructions: the
// service sends none, and a body must not be sent twice.
func newHTTPClient(opts Options, e endpoint) (*http.Client, error) {
	roots, err := extraRoots(opts.CAFile)
	if err != nil {
		return nil, err
	}
	connections := opts.Connections
	if connections == 0 {
		connections = DefaultConnections
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   handshakeTimeout,
		MaxIdleConns:          connections,
		MaxIdleConnsPerHost:   connections,
		IdleConnTimeout:       idleTimeout,
		WriteBufferSize:       bufferSize,
		ReadBufferSize:        bufferSize,
		DisableCompression:    true, // lengths must be those of the blob
		ExpectContinueTimeout: 0,
		Protocols:             new(http.Protocols),
	}
	// One connection of HTTP/2 would carry all puts behind one window.
	t.Protocols.SetHTTP1(true)
	if e.loopback {
		t.IdleConnTimeout = idleLoopback
	}
	if opts.DialContext != nil {
		t.DialContext = opts.DialContext
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// extraRoots adds the certificates of a PEM file to the system's; nil without a file.
func extraRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("target.ca_file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("target.ca_file: %s holds no PEM certificate", file)
	}
	return pool, nil
}

// sender is the SDK's Transporter: it counts the bytes of both bodies as progress, refuses answers that no blob
// service gave, and looks at the service's clock.
type sender struct {
	client *http.Client
	now    func() time.Time
	skew   atomic.Pointer[time.Duration]
}

// Do sends one request.
func (s *sender) Do(req *http.Request) (*http.Response, error) {
	w := stallOf(req.Context())
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = w.watch(req.Body)
		// net/http asks for a second body only when a connection closed before anything was written on it.
		if get := req.GetBody; get != nil {
			req.GetBody = func() (io.ReadCloser, error) {
				body, err := get()
				return w.watch(body), err
			}
		}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	w.progress()
	if resp.StatusCode < 300 && !fromService(resp) {
		_ = resp.Body.Close()
		return nil, errNotService
	}
	s.lookAtClock(resp)
	resp.Body = w.watch(resp.Body)
	return resp, nil
}

// fromService reports whether a blob service gave the answer: it numbers its answers.
func fromService(resp *http.Response) bool {
	return resp != nil && resp.Header.Get("x-ms-request-id") != ""
}

// lookAtClock notes how far the service's clock is ahead of ours; its Date is in whole seconds.
func (s *sender) lookAtClock(resp *http.Response) {
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil || !fromService(resp) {
		return
	}
	skew := date.Sub(s.now()).Round(time.Second)
	s.skew.Store(&skew)
}
