package pageblob

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
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

// maxAnswer bounds what is read of a list or an error, bytes: the SDK takes them into memory whole. A page of a list
// has 5,000 names.
const maxAnswer = 256 << 20

var (
	// errNotService is an answer that did not come from a blob service.
	errNotService = errors.New("answer is not from a blob service, but from a proxy or another server")
	// errOffHost is a connection that would carry everything readable over a network.
	errOffHost = errors.New("http is for this machine only, and the name in target.url leads to another")
)

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
	if e.plain() {
		t.DialContext = onThisHost(t.DialContext)
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// onThisHost refuses connections that leave this machine, whatever name led there: the URL was judged by its text.
func onThisHost(dial dialer) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if to, ok := c.RemoteAddr().(*net.TCPAddr); ok && !to.IP.IsLoopback() {
			_ = c.Close()
			return nil, errOffHost
		}
		return c, nil
	}
}

// extraRoots adds the certificates of a PEM file to the system's; nil without a file.
func extraRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	refused := func(err error) error {
		return &SetupError{Code: "ca-file", Action: "put the PEM certificates of the endpoint's authority into " + file + ", or leave target.ca_file out", Err: err}
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, refused(fmt.Errorf("target.ca_file: %w", err))
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, refused(fmt.Errorf("target.ca_file: %s holds no PEM certificate", file))
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
	// Not client.Do: at a redirect, which is not followed, it rewinds the body while the transport may still read it.
	resp, err := s.client.Transport.RoundTrip(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	w.progress()
	if resp.StatusCode < 300 && !fromService(resp) {
		_ = resp.Body.Close()
		return nil, errNotService
	}
	s.lookAtClock(resp)
	resp.Body = w.watch(bounded(req, resp))
	return resp, nil
}

// bounded is the body of an answer. What is no data ends at maxAnswer, as if it had been cut; a list must be one to its
// last byte, for the SDK takes any XML for a list without entries.
func bounded(req *http.Request, resp *http.Response) io.ReadCloser {
	comp := req.URL.Query().Get("comp")
	if resp.StatusCode < 300 && req.Method == http.MethodGet && comp == "" {
		return resp.Body
	}
	body := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode < 300 && (comp == "list" || comp == "pagelist") {
		body = &list{Reader: body}
	}
	return struct {
		io.Reader
		io.Closer
	}{body, resp.Body}
}

// list is the body of a list; it fails at its end unless that is the end of a list.
type list struct {
	io.Reader
	tail []byte // the last bytes read
}

// listEnds are how the service's lists end.
var listEnds = []string{"</EnumerationResults>", "</PageList>", "<PageList/>", "<PageList />"}

// Read reads, and looks at the end.
func (l *list) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	l.tail = append(l.tail, p[max(0, n-64):n]...)
	l.tail = l.tail[max(0, len(l.tail)-64):]
	if err == io.EOF && !slices.ContainsFunc(listEnds, func(end string) bool { return bytes.HasSuffix(bytes.TrimSpace(l.tail), []byte(end)) }) {
		err = nonsense("a list that ends in %q", l.tail)
	}
	return n, err
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
