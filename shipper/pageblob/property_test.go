package pageblob

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// TestRangesAreASet: whatever pieces a list comes in (clipped, touching, overlapping), what appendRange makes of them
// is sorted, disjoint, not touching, and covers the same bytes within the question.
func TestRangesAreASet(t *testing.T) {
	const size = 64
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := target.ByteRange{Off: r.Int64N(size), Len: r.Int64N(size)}
		var want [2 * size]bool
		var all []target.ByteRange
		for at := int64(0); at < 2*size; {
			from, to := at+r.Int64N(6), at+r.Int64N(12)
			for i := max(from, in.Off); i < min(to, in.End(), 2*size); i++ {
				want[i] = true
			}
			all = appendRange(all, clip(from, to, in))
			at = max(at+1, from)
		}
		covered(t, seed, all, want)
	}
}

func covered(t *testing.T, seed uint64, all []target.ByteRange, want [128]bool) {
	t.Helper()
	var got [128]bool
	last := int64(-1)
	for _, x := range all {
		if x.Len <= 0 || x.Off <= last {
			t.Fatalf("seed %d: not sorted, disjoint and apart: %v", seed, all)
		}
		last = x.End()
		for i := x.Off; i < x.End(); i++ {
			got[i] = true
		}
	}
	if got != want {
		t.Fatalf("seed %d: %v covers other bytes", seed, all)
	}
}

// Whatever is in a credential's file, it is either a credential or an error that quotes none of it.
func FuzzParseProof(f *testing.F) {
	for _, kind := range []Kind{KindConnectionString, KindSharedKey, KindSAS} {
		for _, s := range []string{"", "AccountKey=" + keyA, keyA, "?sv=1&sig=s", "AccountName=x;AccountKey=", "a=b;c", "https://h/?sv=1&sig=%"} {
			f.Add(string(kind), s)
		}
	}
	f.Fuzz(func(t *testing.T, kind, s string) {
		p, err := parseProof(Kind(kind), s, "acct")
		if err == nil {
			if p.key.IsZero() == p.sas.IsZero() {
				t.Fatalf("neither a key nor a SAS, or both")
			}
			return
		}
		name, _, _ := strings.Cut(s, ";")
		if len(s) > 40 && strings.Contains(err.Error(), s) && !strings.Contains(strings.ToLower(name), "accountname") {
			t.Fatalf("the error quotes the content: %v", err)
		}
	})
}

// Whatever the URL, the result is a URL of one container on the host that was named, or an error.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"https://a.blob.core.windows.net/c/p", "http://127.0.0.1:1/a/c", "http://[::1]/a/c/x//y", "https://h/a", "http://%41/a/b", "https://a.b/c?x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseURL(s)
		if err != nil {
			return
		}
		if e.account == "" || !strings.Contains(e.container, "://"+e.host+"/") || strings.ContainsAny(e.container, "?#") {
			t.Fatalf("%q: %+v", s, e)
		}
		if e.prefix != "" && target.CheckName(strings.TrimSuffix(e.prefix, "/")) != nil {
			t.Fatalf("%q: prefix %q", s, e.prefix)
		}
		if strings.HasPrefix(e.container, "http:") && !e.loopback {
			t.Fatalf("%q: http off this machine", s)
		}
	})
}
