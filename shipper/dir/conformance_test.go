package dir

import (
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/targettest"
)

func newDir(t *testing.T, opts Options) *Dir {
	t.Helper()
	opts.Create = true
	d, err := Open(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestConformance(t *testing.T) {
	targettest.Run(t, func(t *testing.T) target.Target { return newDir(t, Options{}) })
}
