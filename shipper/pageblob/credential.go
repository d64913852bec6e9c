package pageblob

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// ErrCredential is wrapped by every error about the content of a credential. Its text never holds any of it.
var ErrCredential = errors.New("target credential")

// Kind is a way to prove who we are, as target.credentials.type spells it.
type Kind string

// The kinds of credential.
const (
	KindDefault          Kind = "default"           // the environment, workload or managed identity, the CLI
	KindConnectionString Kind = "connection_string" // only its AccountKey or SharedAccessSignature is used
	KindSharedKey        Kind = "shared_key"        // an account key, base64
	KindSAS              Kind = "sas"               // a SAS token, with or without the question mark, or a URL that has it
)

// Credential says where the proof comes from. The URL names the account; this only proves it.
type Credential struct {
	Type Kind   // "": KindDefault
	File string // for all kinds but the default; read again when it changes
}

// environment are the variables KindDefault looks at before azidentity's chain, in this order; Azure's own tools read
// the same ones.
var environment = []struct {
	name string
	kind Kind
}{
	{"AZURE_STORAGE_CONNECTION_STRING", KindConnectionString},
	{"AZURE_STORAGE_KEY", KindSharedKey},
	{"AZURE_STORAGE_SAS_TOKEN", KindSAS},
}

// proof is a credential's content: a key, a SAS token, or neither (a token from azidentity).
type proof struct {
	key     Secret
	sas     Secret
	expires time.Time // of the SAS; zero if it does not say
}

// equal reports whether both hold the same content.
func (p proof) equal(o proof) bool {
	return p.key.Reveal() == o.key.Reveal() && p.sas.Reveal() == o.sas.Reveal()
}

// parseProof reads the content of a credential of the given kind for an account.
func parseProof(kind Kind, content, account string) (proof, error) {
	content = strings.TrimSpace(content)
	if content == "" {
		return proof{}, fmt.Errorf("%w: empty", ErrCredential)
	}
	switch kind {
	case KindConnectionString:
		return parseConnectionString(content, account)
	case KindSharedKey:
		return parseKey(content)
	case KindSAS:
		return parseSAS(content, account)
	}
	return proof{}, fmt.Errorf("%w: type %q has no content", ErrCredential, kind)
}

func parseKey(s string) (proof, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) == 0 {
		return proof{}, fmt.Errorf("%w: not an account key: it is not base64", ErrCredential)
	}
	return proof{key: NewSecret(s)}, nil
}

// parseSAS takes a token, or a URL with one, which is what the portal offers to copy.
func parseSAS(s, account string) (proof, error) {
	if i := strings.LastIndexByte(s, '?'); i >= 0 {
		if err := checkAccount("the URL of the SAS", endpointAccount(s[:i]), account); err != nil {
			return proof{}, err
		}
		s = s[i+1:]
	}
	values, err := url.ParseQuery(s)
	if err != nil || values.Get("sig") == "" || values.Get("sv") == "" {
		return proof{}, fmt.Errorf("%w: not a SAS token: it has no sv and sig", ErrCredential)
	}
	p := proof{sas: NewSecret(s)}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z", time.DateOnly} {
		if t, err := time.Parse(layout, values.Get("se")); err == nil {
			p.expires = t
		}
	}
	return p, nil
}

// parseConnectionString takes the key or the SAS. Endpoints and protocol in it are not used, because the URL has them;
// but one that names another account is a mistake to report.
func parseConnectionString(s, account string) (proof, error) {
	fields := map[string]string{}
	for part := range strings.SplitSeq(strings.Trim(s, "; \n"), ";") {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return proof{}, fmt.Errorf("%w: not a connection string: it is not NAME=VALUE;NAME=VALUE", ErrCredential)
		}
		fields[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	for _, named := range []string{fields["accountname"], endpointAccount(fields["blobendpoint"])} {
		if err := checkAccount("the connection string", named, account); err != nil {
			return proof{}, err
		}
	}
	if key := fields["accountkey"]; key != "" {
		return parseKey(key)
	}
	if sas := fields["sharedaccesssignature"]; sas != "" {
		return parseSAS(sas, account)
	}
	return proof{}, fmt.Errorf("%w: the connection string has no AccountKey and no SharedAccessSignature", ErrCredential)
}

// checkAccount refuses a credential that names another account than the URL does; one that names none may be right.
func checkAccount(what, named, account string) error {
	if named == "" || strings.EqualFold(named, account) {
		return nil
	}
	return fmt.Errorf("%w: %s is for account %q, the URL names %q", ErrCredential, what, named, account)
}

// endpointAccount is the account that a service's own URL names, "" for a domain of the operator's.
func endpointAccount(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	labels := strings.Split(u.Hostname(), ".")
	if len(labels) < 3 || labels[1] != "blob" && labels[1] != "privatelink" {
		return ""
	}
	return labels[0]
}
