package rig

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// storageVersion is the version of the service's REST interface that is spoken here.
const storageVersion = "2021-12-02"

// Download fetches a blob as it is at the target, without the appliance and without the SDK it uses: a plain signed GET,
// or a copy of the file of a directory target.
func (t *Target) Download(ctx context.Context, blob, to string) error {
	if t.Azure == nil {
		return tool(ctx, "cp", "--sparse=always", filepath.Join(strings.TrimPrefix(t.URL, "dir://"), blob), to)
	}
	u, err := url.Parse(t.URL)
	if err != nil {
		return err
	}
	u.Path = path.Join(u.Path, blob)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	if err := sign(req, t.Azure.Account(), t.Key); err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<12)) // the status says enough without it
		return &statusError{code: resp.StatusCode, text: fmt.Sprintf("GET %s: %s: %s", u, resp.Status, text)}
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, resp.Body); err != nil {
		return err
	}
	return f.Close()
}

// statusError is an answer of the service that is not what was asked for.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// sign adds the authorization of a GET with a shared key ("Authorize with Shared Key" of the service's REST reference):
// an HMAC over verb, eleven empty headers, the x-ms headers, and the path with the account before it.
func sign(req *http.Request, account, key string) error {
	secret, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return fmt.Errorf("account key: %w", err)
	}
	date := time.Now().UTC().Format(http.TimeFormat)
	req.Header.Set("x-ms-date", date)
	req.Header.Set("x-ms-version", storageVersion)
	text := req.Method + strings.Repeat("\n", 12) +
		"x-ms-date:" + date + "\nx-ms-version:" + storageVersion + "\n/" + account + req.URL.EscapedPath()
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	req.Header.Set("Authorization", "SharedKey "+account+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return nil
}

// AccountSAS signs a token for a whole account's blobs ("Create an account SAS" of the service's REST reference).
func AccountSAS(account, key string, expires time.Time) (string, error) {
	secret, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return "", fmt.Errorf("account key: %w", err)
	}
	const permissions, protocols = "rwdlac", "https,http"
	until := expires.UTC().Format(time.RFC3339)
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s\n%s\nb\nco\n\n%s\n\n%s\n%s\n\n", account, permissions, until, protocols, storageVersion)
	return url.Values{
		"sv": {storageVersion}, "ss": {"b"}, "srt": {"co"}, "sp": {permissions}, "se": {until}, "spr": {protocols},
		"sig": {base64.StdEncoding.EncodeToString(mac.Sum(nil))},
	}.Encode(), nil
}
