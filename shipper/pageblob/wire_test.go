package pageblob

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc64"
	"net/http"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const (
	leaseID = "aaaaaaaa-0000-4000-8000-000000000001"
	snapID  = "2026-01-02T03:04:05.6789012Z"
)

var guarded = target.Guard{Lease: leaseID, Sequence: 7}

// TestI7_Wire holds each request against a golden line: conditions, lease and sequence number are on everything that
// changes a replica, creates carry If-None-Match, and nothing carries Expect.
func TestI7_Wire(t *testing.T) {
	page := make([]byte, 512)
	page[0] = 1
	crc := base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, uint64(checksum.Of(page))))
	object := base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, uint64(checksum.Of([]byte("x")))))
	tests := []struct {
		name string
		call func(ctx context.Context, t *Target) error
		want string
	}{
		{"Create", func(ctx context.Context, t *Target) error { _, err := t.Create(ctx, "n", []byte("x")); return err },
			"PUT /acct/box/pre%2Fn if-none-match=* x-ms-blob-type=BlockBlob x-ms-content-crc64=" + object},
		{"Replace", func(ctx context.Context, t *Target) error {
			_, err := t.Replace(ctx, "n", []byte("x"), `"0x9"`)
			return err
		},
			`PUT /acct/box/pre%2Fn if-match="0x9" x-ms-blob-type=BlockBlob x-ms-content-crc64=` + object},
		{"Delete", func(ctx context.Context, t *Target) error { return t.Delete(ctx, "n") },
			"DELETE /acct/box/pre%2Fn "},
		{"DeleteIf", func(ctx context.Context, t *Target) error { return t.DeleteIf(ctx, "n", `"0x9"`) },
			`DELETE /acct/box/pre%2Fn if-match="0x9"`},
		{"CreatePages", func(ctx context.Context, t *Target) error { return t.CreatePages(ctx, "v/d", 1024, 3) },
			"PUT /acct/box/pre%2Fv%2Fd if-none-match=* x-ms-blob-content-length=1024 x-ms-blob-sequence-number=3 x-ms-blob-type=PageBlob"},
		{"PutPages", func(ctx context.Context, t *Target) error {
			return t.PutPages(ctx, "n", 1024, page, checksum.Of(page), guarded)
		},
			"PUT /acct/box/pre%2Fn?comp=page x-ms-content-crc64=" + crc + " x-ms-if-sequence-number-eq=7 x-ms-lease-id=" + leaseID + " x-ms-page-write=update x-ms-range=bytes=1024-1535"},
		{"PutPages/unguarded", func(ctx context.Context, t *Target) error {
			return t.PutPages(ctx, "n", 0, page, checksum.Of(page), target.Unguarded)
		},
			"PUT /acct/box/pre%2Fn?comp=page x-ms-content-crc64=" + crc + " x-ms-page-write=update x-ms-range=bytes=0-511"},
		{"PutPages/sequence zero", func(ctx context.Context, t *Target) error {
			return t.PutPages(ctx, "n", 0, page, checksum.Of(page), target.Guard{})
		},
			"PUT /acct/box/pre%2Fn?comp=page x-ms-content-crc64=" + crc + " x-ms-if-sequence-number-eq=0 x-ms-page-write=update x-ms-range=bytes=0-511"},
		{"ClearPages", func(ctx context.Context, t *Target) error { return t.ClearPages(ctx, "n", 0, 1<<40, guarded) },
			"PUT /acct/box/pre%2Fn?comp=page x-ms-if-sequence-number-eq=7 x-ms-lease-id=" + leaseID + " x-ms-page-write=clear x-ms-range=bytes=0-1099511627775"},
		{"Snapshot", func(ctx context.Context, t *Target) error {
			_, err := t.Snapshot(ctx, "n", leaseID, `"0x9"`, map[string]string{"epoch": "12"})
			return err
		},
			`PUT /acct/box/pre%2Fn?comp=snapshot if-match="0x9" x-ms-lease-id=` + leaseID + " x-ms-meta-epoch=12"},
		{"DeleteSnapshot", func(ctx context.Context, t *Target) error { return t.DeleteSnapshot(ctx, "a/n%41", snapID) },
			"DELETE /acct/box/pre/a/n%2541?snapshot=2026-01-02T03%3A04%3A05.6789012Z "},
		{"DeletePages", func(ctx context.Context, t *Target) error { return t.DeletePages(ctx, "n", leaseID) },
			"DELETE /acct/box/pre%2Fn x-ms-lease-id=" + leaseID},
		{"AcquireLease", func(ctx context.Context, t *Target) error { return t.AcquireLease(ctx, "n", leaseID) },
			"PUT /acct/box/pre%2Fn?comp=lease x-ms-lease-action=acquire x-ms-lease-duration=-1 x-ms-proposed-lease-id=" + leaseID},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, nil)
			ok(t, c.call(t.Context(), s.target(t, Options{})))
			if got := s.last(t).line(); strings.TrimSpace(got) != strings.TrimSpace(c.want) {
				t.Fatalf("\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

// These answer with 200, which the requests above do not accept.
func TestI7_WireOfProperties(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-ms-blob-sequence-number", cmp.Or(r.Header.Get("x-ms-blob-sequence-number"), "7"))
		w.WriteHeader(map[string]int{"comp=lease": 202}[r.URL.RawQuery] + map[bool]int{true: 200}[r.URL.RawQuery != "comp=lease"])
	})
	tgt := s.target(t, Options{})
	_, err := tgt.SetSequence(t.Context(), "n", 8, leaseID, `"0x9"`)
	ok(t, err)
	ok(t, tgt.Resize(t.Context(), "n", 2048, guarded))
	ok(t, tgt.BreakLease(t.Context(), "n"))
	want := []string{
		`PUT /acct/box/pre%2Fn?comp=properties if-match="0x9" x-ms-blob-sequence-number=8 x-ms-lease-id=` + leaseID + " x-ms-sequence-number-action=update",
		"HEAD /acct/box/pre%2Fn ",
		`PUT /acct/box/pre%2Fn?comp=properties if-match="0x1" x-ms-blob-content-length=2048 x-ms-lease-id=` + leaseID,
		"PUT /acct/box/pre%2Fn?comp=lease x-ms-lease-action=break x-ms-lease-break-period=0",
	}
	for i, r := range s.requests() {
		if r.line() != want[i] {
			t.Errorf("request %d\n got %s\nwant %s", i, r.line(), want[i])
		}
	}
	err = tgt.Resize(t.Context(), "n", 2048, target.Guard{Sequence: 6})
	if !errors.Is(err, target.ErrSequence) || s.last(t).method != http.MethodHead {
		t.Fatalf("resize under another number: %v", err)
	}
}

// The checksum of the wire is CRC-64/NVME in little endian; computed here with the standard library.
func TestChecksumByteOrder(t *testing.T) {
	table := crc64.MakeTable(0x9A6C9329AC4BC9B5)
	if sum := crc64.Checksum([]byte("123456789"), table); sum != 0xae8b14860a799888 || sum != uint64(checksum.Of([]byte("123456789"))) {
		t.Fatalf("not CRC-64/NVME: %016x", sum)
	}
	page := bytes.Repeat([]byte("vhdrelay"), 64)
	s := serve(t, nil)
	ok(t, s.target(t, Options{}).PutPages(t.Context(), "n", 0, page, checksum.Of(page), target.Unguarded))
	raw, err := base64.StdEncoding.DecodeString(s.last(t).header.Get("x-ms-content-crc64"))
	ok(t, err)
	if got := binary.LittleEndian.Uint64(raw); got != crc64.Checksum(page, table) {
		t.Fatalf("on the wire %016x, want %016x", got, crc64.Checksum(page, table))
	}
	if !bytes.Equal(s.last(t).body, page) {
		t.Fatal("another body was sent")
	}
}

func TestChecksumEcho(t *testing.T) {
	page := make([]byte, 512)
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("x-ms-content-crc64", base64.StdEncoding.EncodeToString([]byte{1, 2, 3, 4, 5, 6, 7, 8}))
		w.WriteHeader(http.StatusCreated)
	})
	err := s.target(t, Options{}).PutPages(t.Context(), "n", 0, page, checksum.Of(page), target.Unguarded)
	if !errors.Is(err, target.ErrChecksum) || target.OutcomeOf(err) != target.Unknown {
		t.Fatalf("the service stored something else: %v", err)
	}
}

// TestOneRequest: nothing below the contract repeats, whatever the answer; nor does Expect: 100-continue begin after
// a 503, as it does by default.
func TestOneRequest(t *testing.T) {
	page := make([]byte, 512)
	for _, status := range []int{301, 307, 408, 429, 500, 502, 503, 504} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", r.URL.String())
			refuse(status, "")(w, r)
		})
		tgt := s.target(t, Options{})
		for n := 1; n <= 2; n++ {
			if err := tgt.PutPages(t.Context(), "n", 0, page, checksum.Of(page), target.Unguarded); err == nil {
				t.Fatalf("%d: no error", status)
			}
			if got := len(s.requests()); got != n {
				t.Fatalf("%d: %d requests for %d calls", status, got, n)
			}
			if s.last(t).header.Get("Expect") != "" {
				t.Fatalf("%d: Expect was sent", status)
			}
		}
	}
}

func TestOneRequestWhenTheConnectionBreaks(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	tgt := s.target(t, Options{})
	page := make([]byte, 512)
	err := tgt.PutPages(t.Context(), "n", 0, page, checksum.Of(page), target.Unguarded)
	if target.OutcomeOf(err) != target.Unknown || len(s.requests()) != 1 {
		t.Fatalf("%d requests: %v", len(s.requests()), err)
	}
	_, err = tgt.Get(t.Context(), "n")
	if err == nil || target.OutcomeOf(err) != target.Known {
		t.Fatalf("a read changes nothing: %v", err)
	}
}

// What would do harm without a value is refused before it is sent.
func TestRefusedUnsent(t *testing.T) {
	s := serve(t, nil)
	tgt := s.target(t, Options{})
	ctx := t.Context()
	_, replace := tgt.Replace(ctx, "n", nil, "")
	_, snapshot := tgt.Snapshot(ctx, "n", "", "", map[string]string{"Epoch": "1"})
	_, sequence := tgt.SetSequence(ctx, "n", 1<<53, "", "")
	_, ranges := tgt.Ranges(ctx, "n", "", -1, 4)
	for what, c := range map[string]struct{ err, want error }{
		"replace without an etag":      {replace, target.ErrCondition},
		"metadata key in upper case":   {snapshot, target.ErrName},
		"sequence number too large":    {sequence, target.ErrRange},
		"negative offset":              {ranges, target.ErrRange},
		"snapshot without an id":       {tgt.DeleteSnapshot(ctx, "n", ""), target.ErrName},
		"lease id that is no UUID":     {tgt.AcquireLease(ctx, "n", "me"), target.ErrName},
		"name with an empty element":   {tgt.DeletePages(ctx, "a//b", ""), target.ErrName},
		"put above 4 MiB":              {tgt.PutPages(ctx, "n", 0, make([]byte, 4<<20+512), 0, target.Unguarded), target.ErrTooLarge},
		"clear that is not aligned":    {tgt.ClearPages(ctx, "n", 1, 512, target.Unguarded), target.ErrRange},
		"size that is not aligned":     {tgt.Resize(ctx, "n", 511, target.Unguarded), target.ErrRange},
		"blob above 8 TiB":             {tgt.CreatePages(ctx, "n", 8<<40+512, 0), target.ErrTooLarge},
		"negative sequence of a blob":  {tgt.CreatePages(ctx, "n", 512, -1), target.ErrRange},
		"read behind the largest blob": {tgt.ReadPages(ctx, "n", "", 8<<40, make([]byte, 1)), target.ErrRange},
	} {
		if !errors.Is(c.err, c.want) || target.OutcomeOf(c.err) != target.Known {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	ok(t, tgt.ReadPages(ctx, "n", "", 0, nil)) // no bytes are no request: the service would send the whole blob
	if n := len(s.requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestCreatePagesOfALeasedBlob(t *testing.T) {
	s := serve(t, refuse(412, "LeaseIdMissing"))
	err := s.target(t, Options{}).CreatePages(t.Context(), "n", 512, 0)
	if !errors.Is(err, target.ErrExists) || errors.Is(err, target.ErrLeased) || target.OutcomeOf(err) != target.Known {
		t.Fatal(err)
	}
}
