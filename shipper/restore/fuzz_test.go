package restore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzCursor: a cursor file is one that an export can go on from, or ErrCursor.
func FuzzCursor(f *testing.F) {
	f.Add([]byte(`{"version":1,"vm":"web01","done":4096,"sum":"0000000000000000"}`))
	f.Add([]byte(`{"version":1,"done":-1,"sum":"0000000000000000"}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "cursor")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, found, err := loadCursor(path)
		if err != nil && !errors.Is(err, ErrCursor) || err == nil && (!found || c.Done < 0) {
			t.Errorf("%+v, %v, %v", c, found, err)
		}
	})
}
