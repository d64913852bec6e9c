package pageblob

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// ErrURL is wrapped by every error about Options.URL.
var ErrURL = errors.New("target url")

// endpoint is a target URL taken apart: https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX], or
// http://127.0.0.1:10000/ACCOUNT/CONTAINER[/PREFIX] where the host does not name the account.
type endpoint struct {
	account   string
	host      string // with the port
	container string // URL of the container, without a slash at its end
	prefix    string // of all blob names: "" or with a slash at its end
	loopback  bool
}

// parseURL takes raw apart. Its errors never quote a query: it may be a SAS somebody pasted.
func parseURL(raw string) (endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return endpoint{}, fmt.Errorf("%w: not a URL", ErrURL)
	}
	switch {
	case u.User != nil:
		return endpoint{}, fmt.Errorf("%w: no user or password belongs into it: use target.credentials", ErrURL)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return endpoint{}, fmt.Errorf("%w: no query belongs into it: put a SAS token into the file of target.credentials", ErrURL)
	case u.Hostname() == "" || strings.ContainsFunc(u.Host, notInHost):
		return endpoint{}, fmt.Errorf("%w: %q names no host", ErrURL, raw)
	}
	e := endpoint{host: u.Host, loopback: isLoopback(u.Hostname())}
	if err := checkScheme(u.Scheme, e.loopback); err != nil {
		return endpoint{}, err
	}
	return e.fill(u)
}

// notInHost refuses what would be spelled differently in the URL and on the wire.
func notInHost(r rune) bool {
	return !strings.ContainsRune(".-_:[]", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// checkScheme demands https, except to this machine.
func checkScheme(scheme string, loopback bool) error {
	switch scheme {
	case "https":
		return nil
	case "http":
		if loopback {
			return nil
		}
		return fmt.Errorf("%w: http is for this machine only: use https", ErrURL)
	}
	return fmt.Errorf("%w: scheme %q: use https", ErrURL, scheme)
}

// fill reads account, container and prefix from host and path.
func (e endpoint) fill(u *url.URL) (endpoint, error) {
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	base := url.URL{Scheme: u.Scheme, Host: u.Host}
	if accountInPath(u.Hostname()) {
		e.account, parts = parts[0], parts[1:]
		base.Path = "/" + e.account
	} else {
		e.account, _, _ = strings.Cut(u.Hostname(), ".")
	}
	if len(parts) == 0 || parts[0] == "" || e.account == "" {
		return endpoint{}, fmt.Errorf("%w: names no container: https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]", ErrURL)
	}
	e.container = base.String() + "/" + url.PathEscape(parts[0])
	if len(parts) == 1 {
		return e, nil
	}
	prefix := strings.Join(parts[1:], "/")
	if err := target.CheckName(prefix); err != nil {
		return endpoint{}, fmt.Errorf("%w: %w", ErrURL, err)
	}
	e.prefix = prefix + "/"
	return e, nil
}

// accountInPath tells the emulator's URLs from the service's: an address or a name without a dot holds no account.
func accountInPath(host string) bool {
	return net.ParseIP(host) != nil || !strings.Contains(host, ".")
}

func isLoopback(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// plain reports whether nothing is encrypted on the way.
func (e endpoint) plain() bool { return strings.HasPrefix(e.container, "http://") }

// String is the URL as the operator knows it; there is nothing secret in it.
func (e endpoint) String() string { return strings.TrimSuffix(e.container+"/"+e.prefix, "/") }
