package cli

import "testing"

// FuzzParsePoint: what is taken for a point prints as one that means the same.
func FuzzParsePoint(f *testing.F) {
	for _, s := range []string{"latest", "1-12", "2026-03-01T08:00:00Z", "2026-03-01 08:00", "0-1", "18446744073709551616-1", "2026-03-01T08:00:00+14:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePoint(s)
		if err != nil || p.Latest() {
			return
		}
		again, err := ParsePoint(p.String())
		if err != nil || again.Generation != p.Generation || again.Epoch != p.Epoch || !again.At.Equal(p.At) {
			t.Errorf("%q is %+v, which prints as %q: %+v, %v", s, p, p.String(), again, err)
		}
	})
}
