package pageblob

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/targettest"
)

func TestConformance(t *testing.T) {
	server := emulator(t)
	targettest.RunWith(t, func(t *testing.T) target.Target { return unhurried{fresh(t, server)} }, targettest.Options{
		Skip: map[string]string{
			"PagesPutBeyondEnd": "Azurite accepts a put that straddles the end of the blob, the service does not (AZURE.md 4.1); TestPutBeyondEnd has the rest",
		},
	})
}

// unhurried takes at most one snapshot a millisecond: Azurite names them by it, and a second one in the same
// replaces the first. The service has units of 100 ns.
type unhurried struct{ *Target }

func (u unhurried) Snapshot(ctx context.Context, name, lease, etag string, metadata map[string]string) (string, error) {
	id, err := u.Target.Snapshot(ctx, name, lease, etag, metadata)
	for taken := time.Now(); time.Since(taken) < 2*time.Millisecond; {
		runtime.Gosched()
	}
	return id, err
}

func TestPutBeyondEnd(t *testing.T) {
	tgt := fresh(t, emulator(t))
	ok(t, tgt.CreatePages(t.Context(), "b", 4096, 0))
	data := make([]byte, 512)
	err := tgt.PutPages(t.Context(), "b", 4096, data, checksum.Of(data), target.Unguarded)
	if !errors.Is(err, target.ErrRange) || target.OutcomeOf(err) != target.Known {
		t.Fatalf("put behind the end: %v", err)
	}
}
