package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// service is an in-process blob service: as much of it as a benchmark needs. It checks every put's checksum and keeps
// none of its pages, so that it measures who puts and not who keeps. Small objects it keeps whole.
type service struct {
	url    string
	server *http.Server

	mu struct {
		sync.Mutex // never held over a body
		blobs      map[string]*blob
		etag       int
		puts       map[string]*span // by blob
	}
}

// blob is a page blob without its pages, or a small object.
type blob struct {
	pages    bool
	data     []byte
	size     int64
	sequence string
	lease    string
	etag     string
}

// span is when the pages of a blob came, and how many bytes.
type span struct {
	first, last time.Time
	bytes       int64
}

// The account of the service; its key proves nothing, and nobody asks.
const (
	account = "bench"
	key     = "c2VjcmV0LWtleQ=="
)

func newService() (*service, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &service{url: "http://" + l.Addr().String() + "/" + account + "/box"}
	s.mu.blobs, s.mu.puts = map[string]*blob{}, map[string]*span{}
	s.server = &http.Server{Handler: s}
	go s.server.Serve(l) // ends with close
	return s, nil
}

func (s *service) close() error { return s.server.Close() }

// ServeHTTP answers one request.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("x-ms-request-id", "bench")
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"+account+"/box"), "/")
	comp := r.URL.Query().Get("comp")
	switch {
	case r.URL.Query().Get("restype") == "container" && comp == "list":
		s.list(w, r.URL.Query().Get("prefix"))
	case name == "":
		w.WriteHeader(http.StatusCreated)
	case comp == "page":
		s.putPages(w, r, name)
	case r.Method == http.MethodPut && comp == "":
		s.create(w, r, name)
	default:
		s.change(w, r, name, comp)
	}
}

// putPages takes pages, or a clear of them.
func (s *service) putPages(w http.ResponseWriter, r *http.Request, name string) {
	begun := time.Now()
	sum, n, err := drain(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "RequestBodyInvalid")
		return
	}
	raw := binary.LittleEndian.AppendUint64(nil, uint64(sum))
	if want := r.Header.Get("x-ms-content-crc64"); want != "" {
		if want != base64.StdEncoding.EncodeToString(raw) {
			refuse(w, http.StatusBadRequest, "Crc64Mismatch")
			return
		}
		w.Header().Set("x-ms-content-crc64", want)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.mu.blobs[name]
	if b == nil {
		refuse(w, http.StatusNotFound, "BlobNotFound")
		return
	}
	if n > 0 {
		s.noteLocked(name, begun, n)
	}
	s.touchLocked(w, b)
	w.WriteHeader(http.StatusCreated)
}

func (s *service) noteLocked(name string, begun time.Time, n int64) {
	p := s.mu.puts[name]
	if p == nil {
		p = &span{first: begun}
		s.mu.puts[name] = p
	}
	p.bytes += n
	p.last = time.Now()
}

// buffers are for bodies: the service must not collect garbage while it is a yardstick.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// drain reads a body and returns its checksum and length.
func drain(body io.Reader) (checksum.Sum, int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var sum checksum.Sum
	var total int64
	for {
		n, err := body.Read(*buf)
		sum = checksum.Update(sum, (*buf)[:n])
		total += int64(n)
		if err == io.EOF {
			return sum, total, nil
		}
		if err != nil {
			return sum, total, err
		}
	}
}

// create makes or replaces a blob, under the conditions of the request.
func (s *service) create(w http.ResponseWriter, r *http.Request, name string) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "RequestBodyInvalid")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.mu.blobs[name]
	if have != nil && r.Header.Get("If-None-Match") == "*" {
		refuse(w, http.StatusConflict, "BlobAlreadyExists")
		return
	}
	if want := r.Header.Get("If-Match"); want != "" && (have == nil || have.etag != want) {
		refuse(w, http.StatusPreconditionFailed, "ConditionNotMet")
		return
	}
	b := &blob{pages: r.Header.Get("x-ms-blob-type") == "PageBlob", data: data, size: int64(len(data)), sequence: r.Header.Get("x-ms-blob-sequence-number")}
	if b.pages {
		b.size, _ = strconv.ParseInt(r.Header.Get("x-ms-blob-content-length"), 10, 64)
	}
	s.mu.blobs[name] = b
	s.touchLocked(w, b)
	w.WriteHeader(http.StatusCreated)
}

func (s *service) touchLocked(w http.ResponseWriter, b *blob) {
	s.mu.etag++
	b.etag = fmt.Sprintf(`"0x%x"`, s.mu.etag)
	w.Header().Set("ETag", b.etag)
}

// change is every request that needs the blob to be there.
func (s *service) change(w http.ResponseWriter, r *http.Request, name, comp string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.mu.blobs[name]
	if b == nil {
		refuse(w, http.StatusNotFound, "BlobNotFound")
		return
	}
	switch {
	case r.Method == http.MethodDelete:
		delete(s.mu.blobs, name)
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut:
		s.setLocked(w, r, b, comp)
	default:
		s.showLocked(w, r, b)
	}
}

// setLocked is a lease, a snapshot, or properties.
func (s *service) setLocked(w http.ResponseWriter, r *http.Request, b *blob, comp string) {
	switch comp {
	case "lease":
		b.lease = r.Header.Get("x-ms-proposed-lease-id")
		w.Header().Set("x-ms-lease-id", b.lease)
		w.Header().Set("ETag", b.etag)
		w.WriteHeader(map[string]int{"acquire": http.StatusCreated, "break": http.StatusAccepted}[r.Header.Get("x-ms-lease-action")])
		return
	case "snapshot":
		w.Header().Set("x-ms-snapshot", time.Now().UTC().Format("2006-01-02T15:04:05.0000000Z"))
		s.touchLocked(w, b)
		w.WriteHeader(http.StatusCreated)
		return
	}
	if n := r.Header.Get("x-ms-blob-sequence-number"); n != "" {
		b.sequence = n
	}
	if n, err := strconv.ParseInt(r.Header.Get("x-ms-blob-content-length"), 10, 64); err == nil {
		b.size = n
	}
	s.touchLocked(w, b)
	w.Header().Set("x-ms-blob-sequence-number", b.sequence)
	w.WriteHeader(http.StatusOK)
}

// showLocked answers GET and HEAD. Pages read as nothing: nobody may ask for them.
func (s *service) showLocked(w http.ResponseWriter, r *http.Request, b *blob) {
	if b.pages && r.Method == http.MethodGet {
		refuse(w, http.StatusNotImplemented, "NotImplemented")
		return
	}
	h := w.Header()
	h.Set("ETag", b.etag)
	h.Set("Content-Length", strconv.FormatInt(b.size, 10))
	h.Set("x-ms-blob-sequence-number", b.sequence)
	h.Set("x-ms-lease-status", map[bool]string{true: "locked", false: "unlocked"}[b.lease != ""])
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(b.data) // a client that went away reports it itself
	}
}

// list answers with the base blobs below a prefix; there are few, so in one page.
func (s *service) list(w http.ResponseWriter, prefix string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var x strings.Builder
	x.WriteString(`<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`)
	for _, name := range slices.Sorted(maps.Keys(s.mu.blobs)) {
		if b := s.mu.blobs[name]; strings.HasPrefix(name, prefix) {
			kind := map[bool]string{true: "PageBlob", false: "BlockBlob"}[b.pages]
			fmt.Fprintf(&x, "<Blob><Name>%s</Name><Properties><Content-Length>%d</Content-Length><BlobType>%s</BlobType></Properties></Blob>", name, b.size, kind)
		}
	}
	x.WriteString("</Blobs><NextMarker/></EnumerationResults>")
	w.Header().Set("Content-Type", "application/xml")
	_, _ = io.WriteString(w, x.String())
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("x-ms-error-code", code)
	w.WriteHeader(status)
}

// pagesOf is what came for the blobs whose names match, taken together, and forgets it.
func (s *service) pagesOf(match func(name string) bool) span {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all span
	for name, p := range s.mu.puts {
		if !match(name) {
			continue
		}
		if all.bytes == 0 || p.first.Before(all.first) {
			all.first = p.first
		}
		if p.last.After(all.last) {
			all.last = p.last
		}
		all.bytes += p.bytes
		delete(s.mu.puts, name)
	}
	return all
}

// rate is bytes per second, 0 of nothing.
func (s span) rate() float64 {
	if d := s.last.Sub(s.first).Seconds(); d > 0 {
		return float64(s.bytes) / d
	}
	return 0
}
