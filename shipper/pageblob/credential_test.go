package pageblob

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

const (
	keyA = "a2V5LWE=" // key-a
	keyB = "a2V5LWI="
)

func TestParseProof(t *testing.T) {
	at := time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		kind     Kind
		content  string
		key, sas string
		expires  time.Time
	}{
		{KindSharedKey, keyA + "\n", keyA, "", time.Time{}},
		{KindSAS, "?sv=1&sig=s%2B", "", "sv=1&sig=s%2B", time.Time{}},
		{KindSAS, "sv=1&se=2027-01-02T00:00:00Z&sig=s", "", "sv=1&se=2027-01-02T00:00:00Z&sig=s", at},
		{KindSAS, "sv=1&se=2027-01-02T00:00Z&sig=s", "", "sv=1&se=2027-01-02T00:00Z&sig=s", at},
		{KindSAS, "sv=1&se=2027-01-02&sig=s", "", "sv=1&se=2027-01-02&sig=s", at},
		{KindSAS, "https://acct.blob.core.windows.net/box?sv=1&sig=s", "", "sv=1&sig=s", time.Time{}},
		{KindConnectionString, "DefaultEndpointsProtocol=https;AccountName=Acct;AccountKey=" + keyA + ";EndpointSuffix=core.windows.net", keyA, "", time.Time{}},
		{KindConnectionString, "BlobEndpoint=https://other/;SharedAccessSignature=sv=1&sig=s;", "", "sv=1&sig=s", time.Time{}},
		{KindConnectionString, "accountkey=" + keyA + ";", keyA, "", time.Time{}},
		{KindConnectionString, "BlobEndpoint=https://acct.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=s", "", "sv=1&sig=s", time.Time{}},
		{KindConnectionString, "BlobEndpoint=https://backup.example.com/;SharedAccessSignature=sv=1&sig=s", "", "sv=1&sig=s", time.Time{}}, // a domain of their own
		{KindConnectionString, "BlobEndpoint=http://127.0.0.1:10000/acct;AccountKey=" + keyA, keyA, "", time.Time{}},
	} {
		p, err := parseProof(c.kind, c.content, "acct")
		ok(t, err)
		if p.key.Reveal() != c.key || p.sas.Reveal() != c.sas || !p.expires.Equal(c.expires) {
			t.Errorf("%s: key %q, sas %q, expires %s", c.content, p.key.Reveal(), p.sas.Reveal(), p.expires)
		}
	}
}

func TestParseProofRefuses(t *testing.T) {
	for _, c := range []struct {
		kind          Kind
		content, says string
	}{
		{KindSharedKey, "", "empty"},
		{KindSharedKey, " \n", "empty"},
		{KindSharedKey, "topsecret!", "base64"},
		{KindSAS, "topsecret", "no sv and sig"},
		{KindSAS, "sv=1&topsecret=%zz", "no sv and sig"},
		{KindConnectionString, "topsecret", "not a connection string"},
		{KindConnectionString, "AccountName=acct", "no AccountKey"},
		{KindConnectionString, "AccountName=other;AccountKey=topsecret", `account "other", the URL names "acct"`},
		{KindConnectionString, "AccountName=acct;AccountKey=topsecret!", "base64"},
		{KindConnectionString, "BlobEndpoint=https://other.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=topsecret", `account "other", the URL names "acct"`},
		{KindSAS, "https://other.blob.core.windows.net/box?sv=1&sig=topsecret", `account "other", the URL names "acct"`},
		{KindDefault, "topsecret", "no content"},
	} {
		_, err := parseProof(c.kind, c.content, "acct")
		if !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%s %q: %v, want %q", c.kind, c.content, err, c.says)
		}
	}
}

// The environment is looked at for the default kind only, the connection string first.
func TestEnvironment(t *testing.T) {
	all := map[string]string{
		"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acct;AccountKey=" + keyB,
		"AZURE_STORAGE_KEY":               keyA,
		"AZURE_STORAGE_SAS_TOKEN":         "sv=1&sig=s",
	}
	look := func(c Credential, names ...string) (proof, bool) {
		t.Helper()
		s, err := newSource(c, "acct", func(name string) string {
			for _, n := range names {
				if n == name {
					return all[name]
				}
			}
			return ""
		}, quiet())
		ok(t, err)
		if s == nil {
			return proof{}, false
		}
		p, _ := s.current()
		return p, true
	}
	names := []string{"AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"}
	if p, _ := look(Credential{}, names...); p.key.Reveal() != keyB {
		t.Error("the connection string does not come first")
	}
	if p, _ := look(Credential{Type: KindDefault}, names[1:]...); p.key.Reveal() != keyA {
		t.Error("the key does not come second")
	}
	if p, _ := look(Credential{}, names[2:]...); p.sas.Reveal() != "sv=1&sig=s" {
		t.Error("the SAS is not used")
	}
	if _, found := look(Credential{}); found {
		t.Error("an empty environment gave a credential")
	}
	file := write(t, filepath.Join(t.TempDir(), "key"), keyA)
	if p, _ := look(Credential{Type: KindSharedKey, File: file}, names...); p.key.Reveal() != keyA {
		t.Error("a file was given, and the environment was used")
	}
	_, err := newSource(Credential{}, "acct", func(name string) string { return map[string]string{names[1]: "topsecret!"}[name] }, quiet())
	if !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), names[1]) {
		t.Errorf("a bad key in the environment: %v", err)
	}
}

func TestSourceRefuses(t *testing.T) {
	for _, c := range []Credential{
		{Type: "password", File: "x"},
		{Type: KindSharedKey},
		{Type: KindSharedKey, File: filepath.Join(t.TempDir(), "absent")},
		{Type: KindSharedKey, File: t.TempDir()},
		{Type: KindSharedKey, File: write(t, filepath.Join(t.TempDir(), "key"), "no key!")},
	} {
		if _, err := newSource(c, "acct", noEnv, quiet()); !errors.Is(err, ErrCredential) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	ok(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// replace writes a file as careful tools do: beside it, then rename; the inode changes.
func replace(t *testing.T, path, content string) {
	t.Helper()
	ok(t, os.Rename(write(t, path+".new", content), path))
}

// TestRotation: a changed file is used within a second and not looked at more often; one that makes no sense, or is
// gone, leaves the old credential in use.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := write(t, filepath.Join(t.TempDir(), "key"), keyA)
		s, err := newSource(Credential{Type: KindSharedKey, File: file}, "acct", noEnv, quiet())
		ok(t, err)
		expect := func(what, key string, version int) {
			t.Helper()
			if p, v := s.current(); p.key.Reveal() != key || v != version {
				t.Fatalf("%s: key %s, version %d", what, p.key.Reveal(), v)
			}
		}
		expect("at first", keyA, 0)
		replace(t, file, keyB)
		expect("within the second", keyA, 0)
		pass(recheckInterval)
		expect("after it", keyB, 1)
		ok(t, os.WriteFile(file, nil, 0o600))
		pass(recheckInterval)
		expect("emptied", keyB, 1)
		pass(recheckInterval)
		expect("still empty", keyB, 1)
		ok(t, os.Remove(file))
		pass(recheckInterval)
		expect("gone", keyB, 1)
		pass(recheckInterval)
		expect("still gone", keyB, 1)
		write(t, file, keyB)
		for range 2 {
			pass(recheckInterval)
			expect("back with the same key", keyB, 1)
		}
		replace(t, file, keyA)
		if changed, _ := s.changedSince(1); !changed {
			t.Fatal("asked after a refusal, the file is not looked at")
		}
		if changed, _ := s.changedSince(2); changed {
			t.Fatal("it changed once")
		}
		expect("after a refusal", keyA, 2)
	})
}

// A warning comes once a change, not once a second.
func TestRotationWarnsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := counting()
		file := write(t, filepath.Join(t.TempDir(), "key"), keyA)
		s, err := newSource(Credential{Type: KindSharedKey, File: file}, "acct", noEnv, log)
		ok(t, err)
		for range 5 {
			ok(t, os.WriteFile(file, []byte("half a k"), 0o600))
			pass(recheckInterval)
			s.current()
		}
		broken := lines()
		ok(t, os.Remove(file))
		for range 5 {
			pass(recheckInterval)
			s.current()
		}
		if got := lines() - broken; got != 1 {
			t.Fatalf("%d warnings for one removal", got)
		}
	})
}

// Half of a key may look like a key: what is written in place is used when it has stayed as it is for a second, and
// what is refused meanwhile is tried again.
func TestHalfWrittenSecretIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := counting()
		file := write(t, filepath.Join(t.TempDir(), "key"), keyA)
		s, err := newSource(Credential{Type: KindSharedKey, File: file}, "acct", noEnv, log)
		ok(t, err)
		inUse := func(want string) {
			t.Helper()
			if p, _ := s.current(); p.key.Reveal() != want {
				t.Fatalf("%s is in use, want %s", p.key.Reveal(), want)
			}
		}
		for n := 4; n <= len(keyB); n += 2 { // each look finds another part of it
			ok(t, os.WriteFile(file, []byte(keyB[:n]), 0o600))
			pass(recheckInterval)
			inUse(keyA)
			if changed, unusable := s.changedSince(0); !changed || unusable != nil {
				t.Fatalf("while it is written: %v, %v", changed, unusable)
			}
		}
		pass(settle)
		inUse(keyB)
		if changed, _ := s.changedSince(1); changed {
			t.Error("it is still said to change")
		}
		quiet := lines()
		ok(t, os.WriteFile(file, []byte(keyA[:5]), 0o600)) // and nobody goes on
		for range 4 {
			pass(recheckInterval)
			inUse(keyB)
		}
		if changed, unusable := s.changedSince(1); changed || !errors.Is(unusable, ErrCredential) || lines() != quiet+1 {
			t.Errorf("half a key for good: %v, %v, %d lines", changed, unusable, lines()-quiet)
		}
	})
}

// A secret that others may read is used, and complained about.
func TestReadersOfTheSecret(t *testing.T) {
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o400: 0, 0o640: 1, 0o604: 1, 0o660: 1} {
		log, lines := counting()
		file := write(t, filepath.Join(t.TempDir(), "key"), keyA)
		ok(t, os.Chmod(file, mode))
		_, err := newSource(Credential{Type: KindSharedKey, File: file}, "acct", noEnv, log)
		ok(t, err)
		if lines() != want {
			t.Errorf("mode %o: %d warnings, want %d", mode, lines(), want)
		}
	}
}

// TestI12_Setup: what an operator configured wrongly has a code and a next action, and time does not mend it.
func TestI12_Setup(t *testing.T) {
	dir := t.TempDir()
	bad := write(t, filepath.Join(dir, "bad"), "no key!")
	other := write(t, filepath.Join(dir, "other"), "AccountName=other;AccountKey="+keyA)
	text := write(t, filepath.Join(dir, "text"), "no certificate")
	const url = "https://acct.blob.core.windows.net/box"
	for _, c := range []struct {
		opts                Options
		code, cause, action string
	}{
		{Options{URL: "http://acct.blob.core.windows.net/box"}, "target-url", "http is for this machine only: use https", "correct target.url"},
		{Options{URL: url, Credential: Credential{Type: KindSharedKey, File: filepath.Join(dir, "absent")}}, "credential-unusable", "no such file", "write the secret of the account in target.url to " + dir},
		{Options{URL: url, Credential: Credential{Type: KindSharedKey, File: bad}}, "credential-unusable", bad + ": target credential: not an account key: it is not base64", "write the secret"},
		{Options{URL: url, Credential: Credential{Type: KindConnectionString, File: other}}, "credential-unusable", `the connection string is for account "other", the URL names "acct"`, "write the secret of the account in target.url"},
		{Options{URL: url, Credential: Credential{Type: KindSAS}}, "credential-unusable", "type sas needs a file", "give target.credentials.file"},
		{Options{URL: url, Credential: Credential{Type: "password"}}, "credential-type", `type "password": use default`, "correct target.credentials.type"},
		{Options{URL: url, CAFile: text}, "ca-file", text + " holds no PEM certificate", "put the PEM certificates"},
		{Options{URL: url, CAFile: filepath.Join(dir, "absent")}, "ca-file", "no such file", "leave target.ca_file out"},
		{Options{URL: url, Env: func(name string) string { return map[string]string{"AZURE_STORAGE_KEY": "no key!"}[name] }}, "credential-unusable", "environment variable AZURE_STORAGE_KEY", "correct or unset AZURE_STORAGE_KEY"},
	} {
		if c.opts.Env == nil {
			c.opts.Env = noEnv
		}
		_, err := Open(t.Context(), c.opts)
		class, code, cause, action := retry.Describe(err)
		if class != retry.NonRecoverable || code != c.code || !strings.Contains(cause, c.cause) || !strings.Contains(action, c.action) {
			t.Errorf("%v %s: %s\n  next: %s\n  want %s: %s\n  next: %s", class, code, cause, action, c.code, c.cause, c.action)
		}
	}
}
