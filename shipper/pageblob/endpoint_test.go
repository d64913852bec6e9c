package pageblob

import (
	"errors"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for _, c := range []struct {
		url                        string
		account, container, prefix string
		loopback                   bool
	}{
		{"https://acct.blob.core.windows.net/box", "acct", "https://acct.blob.core.windows.net/box", "", false},
		{"https://acct.blob.core.windows.net/box/", "acct", "https://acct.blob.core.windows.net/box", "", false},
		{"https://acct.blob.core.windows.net/box/a/b%41/", "acct", "https://acct.blob.core.windows.net/box", "a/bA/", false},
		{"https://acct.privatelink.blob.core.windows.net:8443/box", "acct", "https://acct.privatelink.blob.core.windows.net:8443/box", "", false},
		{"http://127.0.0.1:10000/devstoreaccount1/box/p", "devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1/box", "p/", true},
		{"http://[::1]:10000/acct/box", "acct", "http://[::1]:10000/acct/box", "", true},
		{"http://localhost:10000/acct/box", "acct", "http://localhost:10000/acct/box", "", true},
		{"http://acct.localhost:10000/box", "acct", "http://acct.localhost:10000/box", "", true},
		{"https://10.0.0.4/acct/box", "acct", "https://10.0.0.4/acct/box", "", false},
		{"https://azurite:10000/acct/box", "acct", "https://azurite:10000/acct/box", "", false},
	} {
		e, err := parseURL(c.url)
		ok(t, err)
		if e.account != c.account || e.container != c.container || e.prefix != c.prefix || e.loopback != c.loopback {
			t.Errorf("%s: %+v", c.url, e)
		}
	}
}

func TestParseURLRefuses(t *testing.T) {
	for _, c := range []struct{ url, says string }{
		{"http://acct.blob.core.windows.net/box", "use https"},
		{"http://10.0.0.4/acct/box", "use https"},
		{"ftp://127.0.0.1/acct/box", "use https"},
		{"https://acct.blob.core.windows.net", "container"},
		{"https://acct.blob.core.windows.net/", "container"},
		{"http://127.0.0.1:10000/acct", "container"},
		{"http://127.0.0.1:10000/", "container"},
		{"/just/a/path", "host"},
		{"https://0.\x94/box", "host"},
		{"https://a b.net/box", "not a URL"},
		{"https://acct.blob.core.windows.net/box?sv=1&sig=topsecret", "SAS"},
		{"https://acct.blob.core.windows.net/box#topsecret", "query"},
		{"https://user:topsecret@acct.blob.core.windows.net/box", "credentials"},
		{"https://acct.blob.core.windows.net/box/a//b", "element"},
		{"https://acct.blob.core.windows.net/box/../x", "element"},
		{"https://acct.blob.core.windows.net/%zz?sig=topsecret", "not a URL"},
	} {
		_, err := parseURL(c.url)
		if !errors.Is(err, ErrURL) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.url, err, c.says)
		}
		if err != nil && strings.Contains(err.Error(), "topsecret") {
			t.Errorf("leaked: %v", err)
		}
	}
}

func TestString(t *testing.T) {
	tgt := open(t, Options{URL: "https://acct.blob.core.windows.net/box/a/b/", token: fakeToken{}})
	if got := tgt.String(); got != "https://acct.blob.core.windows.net/box/a/b" {
		t.Error(got)
	}
}
