package dir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// FuzzState: whatever the state of a blob says, an operation works or says what is wrong with it, and nothing is written past
// the blob's end.
func FuzzState(f *testing.F) {
	const size = 4096
	d, err := Open(f.TempDir(), Options{Create: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := d.Close(); err != nil {
			f.Error(err)
		}
	})
	ctx := context.Background()
	if err := d.CreatePages(ctx, "vm/b", size, 0); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(d.path, statePath("vm/b"))
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":99,"sequence":-1}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, state []byte) {
		if err := os.WriteFile(path, state, 0o600); err != nil {
			t.Fatal(err)
		}
		page := make([]byte, 512)
		_, statErr := d.Properties(ctx, "vm/b", "")
		putErr := d.PutPages(ctx, "vm/b", 512, page, checksum.Of(page), target.Unguarded)
		readErr := d.ReadPages(ctx, "vm/b", "", 0, page)
		_, listErr := d.Snapshots(ctx, "vm/b")
		pastErr := d.PutPages(ctx, "vm/b", 1<<30, page, checksum.Of(page), target.Unguarded)
		if pastErr == nil {
			t.Error("a put past the end works")
		}
		if damaged(statErr) != damaged(putErr) {
			t.Errorf("one says %v, the other %v", statErr, putErr)
		}
		if st, err := os.Stat(filepath.Join(d.path, "vm/b")); err != nil || st.Size() > size {
			t.Errorf("the blob: %v, %v; %v, %v", st, err, readErr, listErr)
		}
	})
}

func damaged(err error) bool {
	return errors.Is(err, target.ErrDamaged) || errors.Is(err, target.ErrVersion)
}
