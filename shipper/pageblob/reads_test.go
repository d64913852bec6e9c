package pageblob

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// TestReadPagesExact: all of the range or an error, whatever the answer claims.
func TestReadPagesExact(t *testing.T) {
	body := func(contentRange string, declared, sent int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.Header().Set("Content-Length", strconv.Itoa(declared))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(bytes.Repeat([]byte{7}, sent))
		}
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		code   string // "": success
	}{
		{"whole", body("bytes 1024-2047/4096", 1024, 1024), ""},
		{"connection ends early", body("bytes 1024-2047/4096", 1024, 1000), "connection-closed"},
		{"over the end of the blob", body("bytes 1024-1535/1536", 512, 512), "bad-range"},
		{"shorter than asked", body("bytes 1024-1535/4096", 512, 512), "not-the-service"},
		{"another range", body("bytes 0-1023/4096", 1024, 1024), "not-the-service"},
		{"a range that begins before", body("bytes 1000-2047/4096", 1024, 1024), "not-the-service"},
		{"longer than asked", body("bytes 1024-4095/4096", 3072, 3072), "not-the-service"},
		{"no range at all", body("", 1024, 1024), "not-the-service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := make([]byte, 1024)
			err := serve(t, c.answer).target(t, Options{}).ReadPages(t.Context(), "n", "", 1024, p)
			if c.code == "" {
				ok(t, err)
				return
			}
			var e *target.Error
			if !errors.As(err, &e) || e.Code != c.code || e.Outcome != target.Known {
				t.Fatalf("%v, want code %s", err, c.code)
			}
			if c.code != "bad-range" && e.Class != retry.Recoverable {
				t.Fatalf("class %v", e.Class)
			}
		})
	}
}

func TestGetExact(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "half")
	})
	if object, err := s.target(t, Options{}).Get(t.Context(), "n"); err == nil {
		t.Fatalf("half an object was taken: %q", object.Data)
	}
	s = serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush() // so that no length is announced
		_, _ = io.WriteString(w, "whole")
	})
	if object, err := s.target(t, Options{}).Get(t.Context(), "n"); err == nil {
		t.Fatalf("an object of unknown length was taken: %q", object.Data)
	}
	s = serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", fmt.Sprint(1<<40)) })
	if _, err := s.target(t, Options{}).Get(t.Context(), "n"); !errors.Is(err, target.ErrTooLarge) {
		t.Fatalf("an object of a TiB: %v", err)
	}
}

// pageList answers Get Page Ranges from a list, at most two ranges an answer, or unpaged and unclipped as Azurite does.
func pageList(size int64, paged bool, ranges [][2]int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var from, to int64
		asked := r.Header.Get("x-ms-range")
		if asked == "" {
			asked = r.Header.Get("Range")
		}
		_, _ = fmt.Sscanf(asked, "bytes=%d-%d", &from, &to)
		skip, _ := strconv.Atoi(r.URL.Query().Get("marker"))
		var b strings.Builder
		n := 0
		for i, x := range ranges {
			if i < skip || paged && (x[1] < from || x[0] > to) {
				continue
			}
			if paged && n == 2 {
				fmt.Fprintf(&b, "<NextMarker>%d</NextMarker>", i)
				break
			}
			fmt.Fprintf(&b, "<PageRange><Start>%d</Start><End>%d</End></PageRange>", x[0], x[1])
			n++
		}
		w.Header().Set("x-ms-blob-content-length", fmt.Sprint(size))
		sendXML(w, "<PageList>"+b.String()+"</PageList>")
	}
}

func TestRanges(t *testing.T) {
	const gib = 1 << 30
	written := [][2]int64{{0, 511}, {512, 1023}, {4096, 8191}, {gib - 512, gib + 511}, {2 * gib, 2*gib + 511}, {3 * gib, 3*gib + 4095}}
	want := "[{0 1024} {4096 4096} {1073741312 1024} {2147483648 512} {3221225472 512}]"
	for _, paged := range []bool{true, false} {
		s := serve(t, pageList(4*gib, paged, written))
		got, err := s.target(t, Options{}).Ranges(t.Context(), "n", "", 0, 3*gib+512)
		ok(t, err)
		if fmt.Sprint(got) != want {
			t.Errorf("paged %v\n got %v\nwant %s", paged, got, want)
		}
		for _, r := range s.requests() {
			var from, to int64
			_, err := fmt.Sscanf(r.header.Get("x-ms-range")+r.header.Get("Range"), "bytes=%d-%d", &from, &to)
			ok(t, err)
			if to-from+1 > gib || from/gib != to/gib {
				t.Errorf("asked for %d bytes at %d at once", to-from+1, from)
			}
		}
	}
}

func TestRangesOutsideTheBlob(t *testing.T) {
	tgt := serve(t, pageList(4096, true, [][2]int64{{0, 511}})).target(t, Options{})
	if got, err := tgt.Ranges(t.Context(), "n", "", 0, 8192); !errors.Is(err, target.ErrRange) || got != nil {
		t.Fatalf("%v, %v", got, err)
	}
	got, err := tgt.Ranges(t.Context(), "n", "", 4096, 0)
	if err != nil || len(got) != 0 {
		t.Fatalf("nothing asked for: %v, %v", got, err)
	}
}

// A list that failed half-way is no list (AZURE.md 1.3: AzCopy once took one for complete).
func TestRangesDropWhatAnErrorCut(t *testing.T) {
	n := 0
	list := pageList(4<<30, true, [][2]int64{{0, 511}, {1024, 1535}, {4096, 4607}})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n++; n == 2 {
			refuse(500, "OperationTimedOut")(w, r)
			return
		}
		list(w, r)
	})
	if got, err := s.target(t, Options{}).Ranges(t.Context(), "n", "", 0, 1<<30); err == nil || got != nil {
		t.Fatalf("half a list was returned: %v, %v", got, err)
	}
}

func TestListPages(t *testing.T) {
	entry := func(name, kind string) string {
		return "<Blob><Name>" + name + "</Name><Properties><Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified><Content-Length>512</Content-Length><BlobType>" + kind + "</BlobType></Properties></Blob>"
	}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Get("prefix") != "pre/v/":
			refuse(400, "InvalidQueryParameterValue")(w, r)
		case q.Get("marker") == "":
			sendXML(w, "<EnumerationResults><Blobs>"+entry("pre/v/a", "PageBlob")+"</Blobs><NextMarker>m</NextMarker></EnumerationResults>")
		default:
			sendXML(w, "<EnumerationResults><Blobs>"+entry("pre/v/b", "BlockBlob")+"</Blobs></EnumerationResults>")
		}
	})
	var got []string
	for item, err := range s.target(t, Options{}).List(t.Context(), "v/") {
		ok(t, err)
		got = append(got, fmt.Sprintf("%s %d %v %d", item.Name, item.Size, item.Pages, item.Modified.Unix()))
	}
	if want := "v/a 512 true 1767323045;v/b 512 false 1767323045"; strings.Join(got, ";") != want {
		t.Fatalf("%q", got)
	}
}

// The service lists by prefix, and snapshots of other names must not be taken for ours.
func TestSnapshotsOfOneName(t *testing.T) {
	snap := func(name, id string) string {
		return "<Blob><Name>" + name + "</Name><Snapshot>" + id + "</Snapshot><Properties><Content-Length>512</Content-Length><BlobType>PageBlob</BlobType></Properties><Metadata><Epoch>7</Epoch></Metadata></Blob>"
	}
	base := "<Blob><Name>pre/n</Name><Properties><Content-Length>512</Content-Length></Properties></Blob>"
	answer := ""
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		sendXML(w, "<EnumerationResults><Blobs>"+answer+"</Blobs></EnumerationResults>")
	})
	tgt := s.target(t, Options{})
	answer = snap("pre/n", "2026-01-02T03:04:06.0000000Z") + snap("pre/n", "2026-01-02T03:04:05.9999999Z") + base + snap("pre/n2", snapID)
	got, err := tgt.Snapshots(t.Context(), "n")
	ok(t, err)
	if len(got) != 2 || got[0].ID != "2026-01-02T03:04:05.9999999Z" || got[0].Metadata["epoch"] != "7" || got[0].Size != 512 || got[1].Time.Second() != 6 {
		t.Fatalf("%+v", got)
	}
	if q := s.last(t).query; !strings.Contains(q, "snapshots") || !strings.Contains(q, "metadata") || !strings.Contains(q, "prefix=pre%2Fn") {
		t.Fatalf("query %s", q)
	}
	answer = snap("pre/n", "yesterday")
	if got, err := tgt.Snapshots(t.Context(), "n"); err == nil || got != nil {
		t.Fatalf("a snapshot of no time: %v, %v", got, err)
	}
}

// Keys of metadata come back in lower case, though HTTP makes headers canonical.
func TestPropertiesOfHeaders(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("x-ms-meta-epoch", "7")
		w.Header().Set("x-ms-blob-sequence-number", "3")
		w.Header().Set("x-ms-lease-status", "locked")
		w.Header().Set("Content-Length", "512")
	})
	got, err := s.target(t, Options{}).Properties(t.Context(), "n", "")
	ok(t, err)
	if got.Metadata["epoch"] != "7" || got.Sequence != 3 || !got.Leased || got.Size != 512 || got.ETag != `"0x1"` {
		t.Fatalf("%+v", got)
	}
}

// Release: a mismatch is success only where no lease is in force any more.
func TestReleaseOfWhatIsNotLeased(t *testing.T) {
	status := "unlocked"
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("x-ms-lease-status", status)
			return
		}
		refuse(409, "LeaseIdMismatchWithLeaseOperation")(w, r)
	})
	tgt := s.target(t, Options{})
	ok(t, tgt.ReleaseLease(t.Context(), "n", leaseID))
	status = "locked"
	if err := tgt.ReleaseLease(t.Context(), "n", leaseID); !errors.Is(err, target.ErrLeased) {
		t.Fatal(err)
	}
}

// Names that look escaped, with spaces, or not ASCII come back as they were, also where a snapshot is named.
func TestNamesSurvive(t *testing.T) {
	tgt := fresh(t, emulator(t))
	for _, name := range []string{"v%41/d%2F.vhd", "a b/c+d&e=f?g#h", "Üben/日本.vhd", "x/replica.vhd2"} {
		ok(t, tgt.CreatePages(t.Context(), name, 512, 0))
		id, err := tgt.Snapshot(t.Context(), name, "", "", map[string]string{"epoch": "1"})
		ok(t, err)
		props, err := tgt.Properties(t.Context(), name, id)
		ok(t, err)
		if props.Metadata["epoch"] != "1" || props.Size != 512 {
			t.Fatalf("%q: %+v", name, props)
		}
		ok(t, tgt.ReadPages(t.Context(), name, id, 0, make([]byte, 512)))
		snaps, err := tgt.Snapshots(t.Context(), name)
		if err != nil || len(snaps) != 1 || snaps[0].ID != id || snaps[0].Metadata["epoch"] != "1" {
			t.Fatalf("%q: %v %v", name, snaps, err)
		}
		found := false
		for item, err := range tgt.List(t.Context(), "") {
			ok(t, err)
			found = found || item.Name == name && item.Pages
		}
		if !found {
			t.Fatalf("%q is not in the list", name)
		}
		ok(t, tgt.DeleteSnapshot(t.Context(), name, id))
		ok(t, tgt.DeletePages(t.Context(), name, ""))
	}
}
