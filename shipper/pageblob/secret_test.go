package pageblob

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// holder has a secret where fmt cannot call its methods.
type holder struct {
	Open   Secret
	hidden Secret
	list   []Secret
	keyed  map[string]Secret
	inner  *Secret
}

func TestSecretCannotBePrinted(t *testing.T) {
	s := NewSecret("topsecret")
	h := holder{Open: s, hidden: s, list: []Secret{s}, keyed: map[string]Secret{"k": s}, inner: &s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%q", "%s", "%x", "%X", "%d", "%T", "%p", "%t", "% x", "%10.3s"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", h)
		fmt.Fprintf(&out, verb+"\n", &h)
	}
	fmt.Fprintln(&out, s, &s, h, &h, s.String(), s.GoString(), fmt.Errorf("with %v", s))
	for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
		slog.New(handler).Info("m", "secret", s, "pointer", &s, "holder", h, "any", slog.AnyValue(s))
	}
	for _, marshal := range []func(any) ([]byte, error){json.Marshal, yaml.Marshal} {
		for _, v := range []any{s, &s, struct{ S Secret }{s}} {
			data, err := marshal(v)
			ok(t, err)
			out.Write(data)
		}
	}
	data, err := xml.Marshal(s)
	ok(t, err)
	out.Write(data)
	text := out.String()
	for _, leak := range []string{"topsecret", fmt.Sprintf("%x", "topsecret"), fmt.Sprintf("%X", "topsecret"), fmt.Sprintf("% x", "topsecret"), "[116 111 112"} {
		if strings.Contains(text, leak) {
			t.Errorf("leaked as %q:\n%s", leak, text)
		}
	}
	if s.Reveal() != "topsecret" || s.IsZero() {
		t.Error("the secret is lost")
	}
	if (Secret{}).Reveal() != "" || !(Secret{}).IsZero() || !NewSecret("").IsZero() {
		t.Error("the zero value is not the empty secret")
	}
}
