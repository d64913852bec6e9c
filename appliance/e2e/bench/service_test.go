package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/plain"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

func startService(t *testing.T) (*service, *pageblob.Target) {
	t.Helper()
	s, err := newService()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	tgt, err := pageblob.Open(t.Context(), pageblob.Options{URL: s.url + "/pre", Credential: pageblob.Credential{Type: pageblob.KindSharedKey, File: file}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tgt.Close() })
	return s, tgt
}

// The service keeps what a writer's protocol rests on: conditions of small objects and checksums of puts.
func TestServiceKeepsTheConditions(t *testing.T) {
	_, tgt := startService(t)
	ctx := t.Context()
	etag, err := tgt.Create(ctx, "vm.json", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tgt.Create(ctx, "vm.json", nil); !errors.Is(err, target.ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := tgt.Replace(ctx, "vm.json", []byte("two"), etag); err != nil {
		t.Fatal(err)
	}
	if _, err := tgt.Replace(ctx, "vm.json", nil, etag); !errors.Is(err, target.ErrCondition) {
		t.Errorf("replaced under an old etag: %v", err)
	}
	if o, err := tgt.Get(ctx, "vm.json"); err != nil || string(o.Data) != "two" {
		t.Errorf("%q, %v", o.Data, err)
	}
	if _, err := tgt.Get(ctx, "none"); !errors.Is(err, target.ErrNotFound) {
		t.Errorf("what is not there: %v", err)
	}
	var names []string
	for item, err := range tgt.List(ctx, "vm") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, item.Name)
	}
	if len(names) != 1 || names[0] != "vm.json" {
		t.Errorf("listed %v", names)
	}
	if err := errors.Join(tgt.Delete(ctx, "vm.json"), tgt.Delete(ctx, "vm.json")); err != nil {
		t.Error(err)
	}
}

func TestServiceTakesPages(t *testing.T) {
	s, tgt := startService(t)
	ctx := t.Context()
	if err := tgt.CreatePages(ctx, "disk", 1<<20, 1); err != nil {
		t.Fatal(err)
	}
	lease := "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	etag, err := tgt.SetSequence(ctx, "disk", 2, "", "")
	if err := errors.Join(err, tgt.AcquireLease(ctx, "disk", lease)); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{7}, 8192)
	guard := target.Guard{Lease: lease, Sequence: 2}
	if err := tgt.PutPages(ctx, "disk", 4096, data, checksum.Of(data), guard); err != nil {
		t.Fatal(err)
	}
	if err := tgt.PutPages(ctx, "disk", 4096, data, 5, guard); !errors.Is(err, target.ErrChecksum) {
		t.Errorf("a wrong checksum passes: %v", err)
	}
	if err := tgt.ClearPages(ctx, "disk", 0, 4096, guard); err != nil {
		t.Fatal(err)
	}
	if id, err := tgt.Snapshot(ctx, "disk", lease, "", nil); err != nil || id == "" {
		t.Errorf("snapshot %q, %v", id, err)
	}
	if err := tgt.Resize(ctx, "disk", 2<<20, target.Guard{Lease: lease, Sequence: -1}); err != nil {
		t.Fatal(err)
	}
	p, err := tgt.Properties(ctx, "disk", "")
	if err != nil || p.Size != 2<<20 || p.Sequence != 2 || !p.Leased || p.ETag == etag {
		t.Errorf("%+v, %v", p, err)
	}
	all := func(string) bool { return true }
	if got := s.pagesOf(all); got.bytes != 8192 || got.last.Before(got.first) {
		t.Errorf("noted %+v: only the good put carries bytes", got)
	}
	if got := s.pagesOf(all); got.bytes != 0 || got.rate() != 0 {
		t.Errorf("noted twice: %+v", got)
	}
}

func TestServiceTakesPlainPuts(t *testing.T) {
	s, _ := startService(t)
	data := make([]byte, 5<<20)
	to := plain.Blob{Container: s.url, Account: account, Key: key, Name: "yardstick"}
	if err := plain.Put(context.WithoutCancel(t.Context()), to, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if got := s.pagesOf(func(name string) bool { return name == "yardstick" }); got.bytes != int64(len(data)) {
		t.Errorf("noted %d bytes of %d", got.bytes, len(data))
	}
}

func TestSpanRate(t *testing.T) {
	at := time.Unix(1, 0)
	if got := (span{first: at, last: at.Add(2 * time.Second), bytes: 10}).rate(); got != 5 {
		t.Error(got)
	}
}
