package pageblob

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is all that a Secret shows of itself.
const redacted = "[secret]"

// Secret holds a string that cannot be printed: not by fmt with any verb, not by encoding/json, YAML or slog. The zero
// value is the empty secret. The string is behind a pointer because fmt ignores methods inside unexported fields and
// prints what it finds there; of a pointer it prints the address.
type Secret struct{ value *string }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{value: &s} }

// Reveal returns the string. Its callers are the places to look at in a review.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether the secret is the empty string.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String is for fmt's benefit: the redaction.
func (s Secret) String() string { return redacted }

// GoString is for %#v.
func (s Secret) GoString() string { return redacted }

// Format is for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue is for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON writes the redaction.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText writes the redaction, for XML, map keys and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalYAML writes the redaction.
func (s Secret) MarshalYAML() (any, error) { return redacted, nil }
