package journal

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// FuzzRecords: whatever a record of the store holds, a check names it or passes, and inventory and dump end.
func FuzzRecords(f *testing.F) {
	f.Add("vm/web01", []byte(`{"id":"v","created":"2026-01-01T00:00:00Z"}`))
	f.Add("disk/v/d", []byte(`{"name":"os.vhd"}`))
	f.Add("epoch/v", []byte(`{"reserved":7}`))
	f.Add("sus/d", []byte(`{"ranges":[[0,1],[1,0]]}`))
	f.Add("set/d/00000000", []byte{1, 2, 3})
	f.Add("act/d/00000001", []byte{})
	f.Add("meta/version", []byte("2"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		var store memory.Store
		var b kv.Batch
		b.Put([]byte("meta/version"), []byte("1"))
		b.Put([]byte("vm/a"), []byte(`{"id":"v"}`))
		b.Put([]byte("disk/v/d"), []byte(`{"name":"a.raw"}`))
		b.Put([]byte(key), value)
		if b.Check() != nil || store.Apply(&b) != nil {
			return
		}
		if err := Check(&store); err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrNewer) {
			t.Errorf("%v is no error of the format", err)
		}
		if _, err := Inventory(&store); err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%v is no error of the format", err)
		}
		if err := Dump(&store, io.Discard); err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%v is no error of the format", err)
		}
	})
}

// FuzzHeartbeat: what the heartbeat's file holds after a crash is a heartbeat or none, and the next one can be written.
func FuzzHeartbeat(f *testing.F) {
	f.Add([]byte(`{"session":"s","until":"2026-01-01T00:00:00Z"}   `))
	f.Add(make([]byte, beatSize))
	f.Add([]byte(`{"session":`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "heartbeat")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := openHeartbeat(path)
		if err != nil {
			t.Fatal(err)
		}
		want := beatRecord{Session: "next", Until: time.Unix(1e9, 0).UTC()}
		if err := errors.Join(h.write(want), h.close()); err != nil {
			t.Fatal(err)
		}
		again, err := openHeartbeat(path)
		if err != nil {
			t.Fatal(err)
		}
		if again.last != want {
			t.Errorf("%+v", again.last)
		}
		if err := again.close(); err != nil {
			t.Error(err)
		}
	})
}
