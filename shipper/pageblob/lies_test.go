package pageblob

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// operation is one method of the contract, on names below a directory of its own.
type operation struct {
	name  string
	setup func(s *scene) // with the direct target
	call  func(s *scene, tgt *Target) (any, error)
}

// scene is where one operation plays: what it needs is at dir.
type scene struct {
	t      *testing.T
	ctx    context.Context
	direct *Target
	dir    string
	etag   string // of object
	snap   string // of pages
}

func (s *scene) object() string { return s.dir + "/o" }
func (s *scene) pages() string  { return s.dir + "/p" }

func (s *scene) withObject() {
	var err error
	s.etag, err = s.direct.Create(s.ctx, s.object(), []byte("an object"))
	ok(s.t, err)
}

func (s *scene) withPages() {
	ok(s.t, s.direct.CreatePages(s.ctx, s.pages(), 4096, 7))
	page := bytes.Repeat([]byte{1}, 512)
	for _, off := range []int64{0, 1024} {
		ok(s.t, s.direct.PutPages(s.ctx, s.pages(), off, page, checksum.Of(page), target.Unguarded))
	}
}

func (s *scene) leased() {
	s.withPages()
	ok(s.t, s.direct.AcquireLease(s.ctx, s.pages(), leaseID))
}

func (s *scene) withSnapshot() {
	s.withPages()
	var err error
	s.snap, err = s.direct.Snapshot(s.ctx, s.pages(), "", "", map[string]string{"epoch": "1"})
	ok(s.t, err)
}

func nothing(*scene) {}

var lyingPage = bytes.Repeat([]byte{2}, 512)

// operations are all methods of target.Target and the two of Target beside it.
var operations = []operation{
	{"Get", (*scene).withObject, func(s *scene, t *Target) (any, error) {
		o, err := t.Get(s.ctx, s.object())
		return string(o.Data) + fmt.Sprint(o.ETag == s.etag), err
	}},
	{"Create", nothing, func(s *scene, t *Target) (any, error) {
		_, err := t.Create(s.ctx, s.object(), []byte("new"))
		return nil, err
	}},
	{"Replace", (*scene).withObject, func(s *scene, t *Target) (any, error) {
		_, err := t.Replace(s.ctx, s.object(), []byte("newer"), s.etag)
		return nil, err
	}},
	{"Delete", (*scene).withObject, func(s *scene, t *Target) (any, error) { return nil, t.Delete(s.ctx, s.object()) }},
	{"DeleteIf", (*scene).withObject, func(s *scene, t *Target) (any, error) { return nil, t.DeleteIf(s.ctx, s.object(), s.etag) }},
	{"List", (*scene).withSnapshot, func(s *scene, t *Target) (any, error) {
		var names []string
		for item, err := range t.List(s.ctx, s.dir+"/") {
			if err != nil {
				return nil, err
			}
			names = append(names, strings.TrimPrefix(item.Name, s.dir)+fmt.Sprint(item.Size, item.Pages))
		}
		return fmt.Sprint(names), nil
	}},
	{"CreatePages", nothing, func(s *scene, t *Target) (any, error) { return nil, t.CreatePages(s.ctx, s.pages(), 1024, 3) }},
	{"Properties", (*scene).leased, func(s *scene, t *Target) (any, error) {
		p, err := t.Properties(s.ctx, s.pages(), "")
		return fmt.Sprint(p.Size, p.Sequence, p.Leased, p.Metadata), err
	}},
	{"PutPages", (*scene).leased, func(s *scene, t *Target) (any, error) {
		return nil, t.PutPages(s.ctx, s.pages(), 512, lyingPage, checksum.Of(lyingPage), guarded)
	}},
	{"ClearPages", (*scene).leased, func(s *scene, t *Target) (any, error) { return nil, t.ClearPages(s.ctx, s.pages(), 0, 512, guarded) }},
	{"ReadPages", (*scene).withPages, func(s *scene, t *Target) (any, error) {
		p := make([]byte, 1536)
		err := t.ReadPages(s.ctx, s.pages(), "", 0, p)
		return checksum.Of(p), err
	}},
	{"Ranges", (*scene).withPages, func(s *scene, t *Target) (any, error) {
		r, err := t.Ranges(s.ctx, s.pages(), "", 0, 4096)
		return fmt.Sprint(r), err
	}},
	{"Resize", (*scene).leased, func(s *scene, t *Target) (any, error) { return nil, t.Resize(s.ctx, s.pages(), 8192, guarded) }},
	{"SetSequence", (*scene).leased, func(s *scene, t *Target) (any, error) {
		_, err := t.SetSequence(s.ctx, s.pages(), 8, leaseID, "")
		return nil, err
	}},
	{"Snapshot", (*scene).leased, func(s *scene, t *Target) (any, error) {
		_, err := t.Snapshot(s.ctx, s.pages(), leaseID, "", map[string]string{"epoch": "2"})
		return nil, err
	}},
	{"Snapshots", (*scene).withSnapshot, func(s *scene, t *Target) (any, error) {
		all, err := t.Snapshots(s.ctx, s.pages())
		if err != nil || len(all) != 1 {
			return len(all), err
		}
		return fmt.Sprint(all[0].ID == s.snap, all[0].Metadata, all[0].Size), nil
	}},
	{"DeleteSnapshot", (*scene).withSnapshot, func(s *scene, t *Target) (any, error) { return nil, t.DeleteSnapshot(s.ctx, s.pages(), s.snap) }},
	{"DeletePages", (*scene).leased, func(s *scene, t *Target) (any, error) { return nil, t.DeletePages(s.ctx, s.pages(), leaseID) }},
	{"AcquireLease", (*scene).withPages, func(s *scene, t *Target) (any, error) { return nil, t.AcquireLease(s.ctx, s.pages(), leaseID) }},
	{"BreakLease", (*scene).leased, func(s *scene, t *Target) (any, error) { return nil, t.BreakLease(s.ctx, s.pages()) }},
	{"ReleaseLease", (*scene).leased, func(s *scene, t *Target) (any, error) { return nil, t.ReleaseLease(s.ctx, s.pages(), leaseID) }},
	{"Probe", nothing, func(s *scene, t *Target) (any, error) { return nil, t.Probe(s.ctx) }},
	{"EnsureContainer", nothing, func(s *scene, t *Target) (any, error) { return nil, t.EnsureContainer(s.ctx) }},
}

// truth is what really is there, without ETags and times.
func (s *scene) truth() string {
	s.t.Helper()
	o, err := s.direct.Get(s.ctx, s.object())
	text := fmt.Sprintf("object %q %v", o.Data, err == nil)
	p, err := s.direct.Properties(s.ctx, s.pages(), "")
	if errors.Is(err, target.ErrNotFound) {
		return text + ", no pages"
	}
	ok(s.t, err)
	data := make([]byte, p.Size)
	ok(s.t, s.direct.ReadPages(s.ctx, s.pages(), "", 0, data))
	snaps, err := s.direct.Snapshots(s.ctx, s.pages())
	ok(s.t, err)
	return fmt.Sprintf("%s, %d pages of %x, number %d, leased %v, %d snapshots", text, p.Size, checksum.Of(data), p.Sequence, p.Leased, len(snaps))
}

// liar stands between a target and Azurite and does one lie to every request.
type liar struct {
	*httptest.Server
	tell atomic.Pointer[lie] // a request that outlives its test reads it
	from *azurite.Server
	hung chan struct{} // closed when the test ends
}

// lie is what a server, or something on the way, does to a request.
type lie struct {
	name   string
	tell   func(l *liar, w http.ResponseWriter, r *http.Request)
	class  retry.Class
	codes  []string // any of them; none: success is as good
	action string   // part of the next action
	only   []string // operations; nil: all
}

func newLiar(t *testing.T, s *azurite.Server) *liar {
	l := &liar{from: s, hung: make(chan struct{})}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.tell.Load().tell(l, w, r) }))
	t.Cleanup(func() {
		close(l.hung)
		l.CloseClientConnections()
		l.Close()
	})
	return l
}

// truly is the answer of the real server.
func (l *liar) truly(r *http.Request) *httptest.ResponseRecorder {
	body, _ := io.ReadAll(r.Body) // what was cut is the client's to report
	rec := httptest.NewRecorder()
	forward(rec, r, l.from, body)
	return rec
}

// as sends an answer on, with another body.
func as(w http.ResponseWriter, rec *httptest.ResponseRecorder, body []byte) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(body) // nobody may be there
}

// hijack takes the connection, sends text on it and closes it, with a reset if there is no text.
func hijack(w http.ResponseWriter, text string) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tcp, isTCP := c.(*net.TCPConn); isTCP && text == "" {
		_ = tcp.SetLinger(0)
	}
	_, _ = io.WriteString(c, text)
	_ = c.Close()
}

// refusing answers like the service, after the request took effect or without.
func refusing(status int, code string, applied bool) func(*liar, http.ResponseWriter, *http.Request) {
	return func(l *liar, w http.ResponseWriter, r *http.Request) {
		if applied {
			l.truly(r)
		}
		w.Header().Set("x-ms-request-id", "liar")
		refuse(status, code)(w, r)
	}
}

const page = "<!DOCTYPE html><html><body>Please sign in to the network</body></html>"

// html answers as a proxy's page does.
func html(status int, applied bool) func(*liar, http.ResponseWriter, *http.Request) {
	return func(l *liar, w http.ResponseWriter, r *http.Request) {
		if applied {
			l.truly(r)
		}
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("x-ms-error-code", "BlobNotFound") // even then
		w.WriteHeader(status)
		_, _ = io.WriteString(w, page)
	}
}

// header changes a header of the true answer; "" takes it away.
func header(name string, change func(string) string) func(*liar, http.ResponseWriter, *http.Request) {
	return func(l *liar, w http.ResponseWriter, r *http.Request) {
		rec := l.truly(r)
		if value := change(rec.Header().Get(name)); value == "" {
			rec.Header().Del(name)
		} else {
			rec.Header().Set(name, value)
		}
		as(w, rec, rec.Body.Bytes())
	}
}

// longer announces n bytes more than there are.
func longer(n int) func(*liar, http.ResponseWriter, *http.Request) {
	return func(l *liar, w http.ResponseWriter, r *http.Request) {
		rec := l.truly(r)
		have := rec.Body.Len()
		if r.Method == http.MethodHead {
			have, _ = strconv.Atoi(rec.Header().Get("Content-Length"))
		}
		rec.Header().Set("Content-Length", fmt.Sprint(have+n))
		as(w, rec, rec.Body.Bytes())
	}
}

var (
	withBody  = []string{"Get", "List", "ReadPages", "Ranges", "Snapshots", "Probe"}
	withETags = []string{"Get", "Create", "Replace", "Properties", "Resize", "SetSequence"}
)

const (
	again = retry.Recoverable
	stop  = retry.NonRecoverable
)

var wrongSum = base64.StdEncoding.EncodeToString([]byte{1, 2, 3, 4, 5, 6, 7, 8})

// lies with what becomes of each: the class, the codes and the advice that an operator gets.
var lies = []lie{
	{name: "503", tell: refusing(503, "ServerBusy", false), class: again, codes: []string{"throttled"}, action: "tried again"},
	{name: "500 without effect", tell: refusing(500, "InternalError", false), class: again, codes: []string{"service-error"}, action: "tried again"},
	{name: "500 with effect", tell: refusing(500, "InternalError", true), class: again, codes: []string{"service-error"}, action: "tried again"},
	{name: "403", tell: refusing(403, "AuthenticationFailed", false), class: stop, codes: []string{"not-authorized"}, action: "check target.credentials"},
	{name: "reset without effect", tell: func(_ *liar, w http.ResponseWriter, _ *http.Request) { hijack(w, "") }, class: again, codes: []string{"connection-closed"}, action: "tried again"},
	{name: "reset with effect", tell: func(l *liar, w http.ResponseWriter, r *http.Request) { l.truly(r); hijack(w, "") }, class: again, codes: []string{"connection-closed"}, action: "tried again"},
	{name: "hang without effect", tell: func(l *liar, _ http.ResponseWriter, _ *http.Request) { <-l.hung }, class: again, codes: []string{"timeout"}, action: "look at the line to 127.0.0.1"},
	{name: "hang with effect", tell: func(l *liar, _ http.ResponseWriter, r *http.Request) { l.truly(r); <-l.hung }, class: again, codes: []string{"timeout"}, action: "look at the line to 127.0.0.1"},
	{name: "body cut", tell: func(l *liar, w http.ResponseWriter, r *http.Request) {
		rec := l.truly(r)
		rec.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		as(w, rec, rec.Body.Bytes()[:rec.Body.Len()/2])
	}, class: again, codes: []string{"connection-closed"}, action: "tried again", only: withBody},
	{name: "body cut, length too", tell: func(l *liar, w http.ResponseWriter, r *http.Request) {
		rec := l.truly(r)
		rec.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()/2))
		as(w, rec, rec.Body.Bytes()[:rec.Body.Len()/2])
	}, class: again, codes: []string{"not-the-service", "checksum-mismatch"}, action: "", only: withBody},
	{name: "body that is a page", tell: func(l *liar, w http.ResponseWriter, r *http.Request) {
		rec := l.truly(r)
		rec.Header().Set("Content-Length", fmt.Sprint(len(page)))
		as(w, rec, []byte(page))
	}, class: again, codes: []string{"not-the-service", "checksum-mismatch"}, action: "", only: withBody},
	{name: "page of a proxy", tell: html(200, false), class: again, codes: []string{"not-the-service"}, action: "whether a proxy is between"},
	{name: "created page of a proxy", tell: html(201, true), class: again, codes: []string{"not-the-service"}, action: "whether a proxy is between"},
	{name: "404 of a proxy", tell: html(404, false), class: again, codes: []string{"not-the-service"}, action: "whether a proxy is between"},
	{name: "409 of a proxy", tell: html(409, true), class: again, codes: []string{"not-the-service"}, action: "whether a proxy is between"},
	{name: "412 of a proxy", tell: html(412, true), class: again, codes: []string{"not-the-service"}, action: "whether a proxy is between"},
	{name: "403 of a proxy", tell: html(403, false), class: again, codes: []string{"proxy-refused"}, action: "allow the host of target.url"},
	{name: "407 of a proxy", tell: html(407, false), class: stop, codes: []string{"proxy-authentication"}, action: "HTTPS_PROXY"},
	{name: "502 of a proxy", tell: html(502, true), class: again, codes: []string{"service-error"}, action: "tried again"},
	{name: "503 of a proxy", tell: html(503, true), class: again, codes: []string{"throttled"}, action: "tried again"},
	{name: "redirect", tell: func(l *liar, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+hostOf(l.from)+r.URL.RequestURI(), http.StatusTemporaryRedirect)
	}, class: stop, codes: []string{"redirected"}, action: "correct target.url"},
	{name: "wrong CRC in the header", tell: header("x-ms-content-crc64", func(string) string { return wrongSum }), class: again, codes: []string{"checksum-mismatch"},
		action: "", only: []string{"Get", "Create", "Replace", "PutPages", "ReadPages"}},
	{name: "wrong MD5 in the header", tell: header("Content-MD5", func(string) string {
		return base64.StdEncoding.EncodeToString(make([]byte, 16))
	}), class: again, codes: []string{"checksum-mismatch"}, action: "", only: []string{"Get", "Create", "Replace"}},
	{name: "one bit of an object", tell: func(l *liar, w http.ResponseWriter, r *http.Request) {
		rec := l.truly(r)
		rec.Body.Bytes()[3] ^= 1
		as(w, rec, rec.Body.Bytes())
	}, class: again, codes: []string{"checksum-mismatch"}, action: "", only: []string{"Get"}},
	{name: "length too long", tell: longer(10), class: again, codes: []string{"connection-closed", "not-the-service"}, action: "",
		only: append([]string{"Properties", "Resize"}, withBody...)},
	{name: "range of another place", tell: header("Content-Range", func(string) string { return "bytes 512-2047/4096" }), class: again, codes: []string{"not-the-service"}, action: "", only: []string{"ReadPages"}},
	{name: "size of another blob", tell: header("Content-Range", func(string) string { return "bytes 0-1535/-1" }), class: again, codes: []string{"not-the-service"}, action: "", only: []string{"ReadPages"}},
	{name: "no ETag", tell: header("ETag", func(string) string { return "" }), class: again, codes: []string{"not-the-service"}, action: "check target.url", only: withETags},
	{name: "another sequence number", tell: header("x-ms-blob-sequence-number", func(string) string { return "99" }), class: again, codes: []string{"not-the-service"}, action: "", only: []string{"SetSequence"}},
	{name: "nonsense in a number", tell: header("x-ms-blob-sequence-number", func(string) string { return "seven" }), class: again, codes: []string{"not-the-service"}, action: "", only: []string{"Properties", "Resize", "SetSequence"}},
	{name: "another protocol", tell: func(_ *liar, w http.ResponseWriter, _ *http.Request) { hijack(w, "SSH-2.0-OpenSSH_9.2\r\n") }, class: again, codes: []string{"not-the-service", "connection-closed"}, action: ""},
	{name: "the same page of a list for ever", tell: func(l *liar, w http.ResponseWriter, r *http.Request) {
		rec := l.truly(r)
		text := strings.NewReplacer("<NextMarker/>", "<NextMarker>m</NextMarker>", "<NextMarker></NextMarker>", "<NextMarker>m</NextMarker>", "</PageList>", "<NextMarker>m</NextMarker></PageList>").Replace(rec.Body.String())
		rec.Header().Del("Content-Length")
		as(w, rec, []byte(text))
	}, class: again, codes: []string{"not-the-service"}, action: "", only: []string{"List", "Ranges", "Snapshots"}},
}

// TestI12_Lies: whatever stands between and lies, a method that reports success has told the truth and done its work,
// one that says its outcome is known has changed nothing, and every failure has a class, a code and a next action.
func TestI12_Lies(t *testing.T) {
	server := emulator(t)
	box := "c" + uuid.NewString()
	direct := open(t, Options{URL: server.Endpoint() + "/" + box, Env: keyOf(server)})
	ok(t, direct.EnsureContainer(t.Context()))
	l := newLiar(t, server)
	through := open(t, Options{URL: l.URL + "/" + server.Account() + "/" + box, Env: keyOf(server), Stall: 100 * time.Millisecond})
	for _, o := range operations {
		t.Run(o.name, func(t *testing.T) {
			want, after := o.honest(t, direct)
			for _, lie := range lies {
				if lie.only == nil || slices.Contains(lie.only, o.name) {
					t.Run(lie.name, func(t *testing.T) {
						l.tell.Store(&lie)
						o.against(t, lie, &scene{t: t, ctx: t.Context(), direct: direct, dir: uuid.NewString()}, through, want, after)
					})
				}
			}
		})
	}
}

// honest is what the operation answers and leaves when nobody lies.
func (o operation) honest(t *testing.T, direct *Target) (any, string) {
	t.Helper()
	s := &scene{t: t, ctx: t.Context(), direct: direct, dir: uuid.NewString()}
	o.setup(s)
	got, err := o.call(s, direct)
	ok(t, err)
	return got, s.truth()
}

func (o operation) against(t *testing.T, lie lie, s *scene, through *Target, want any, after string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	o.setup(s)
	before := s.truth()
	s.ctx = ctx
	got, err := o.call(s, through)
	s.ctx = t.Context()
	now := s.truth()
	if err == nil {
		if got != want || now != after {
			t.Fatalf("success, although it answered %v instead of %v, and left %s instead of %s", got, want, now, after)
		}
		if len(lie.codes) > 0 {
			t.Fatalf("success, want one of %v", lie.codes)
		}
		return
	}
	class, code, cause, action := retry.Describe(err)
	if !slices.Contains(lie.codes, code) || class != lie.class || !strings.Contains(action, lie.action) || action == "" || ctx.Err() != nil {
		t.Errorf("%v, %s, %q, next: %q; want %v, one of %v, next: %q", class, code, cause, action, lie.class, lie.codes, lie.action)
	}
	if target.OutcomeOf(err) == target.Known && now != before {
		t.Errorf("its outcome is known (%v), and it changed %s to %s", err, before, now)
	}
	if now != before && now != after {
		t.Errorf("half done: %s", now)
	}
}

// Lists that are out of order, of other names, or of overlapping ranges are no lists.
func TestListsThatContradictThemselves(t *testing.T) {
	entry := func(name string) string {
		return "<Blob><Name>pre/" + name + "</Name><Properties><Content-Length>512</Content-Length></Properties></Blob>"
	}
	ranges := func(pairs ...int) (text string) {
		for i := 0; i < len(pairs); i += 2 {
			text += fmt.Sprintf("<PageRange><Start>%d</Start><End>%d</End></PageRange>", pairs[i], pairs[i+1])
		}
		return "<PageList>" + text + "</PageList>"
	}
	for name, answer := range map[string]string{
		"out of order":  entry("b") + entry("a"),
		"a name twice":  entry("a") + entry("a"),
		"another name":  "<Blob><Name>other</Name><Properties><Content-Length>512</Content-Length></Properties></Blob>",
		"no properties": "<Blob><Name>pre/a</Name></Blob>",
		"ranges":        ranges(1024, 1535, 0, 511),
		"overlap":       ranges(0, 1023, 512, 1535),
		"backwards":     ranges(1024, 511),
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-ms-blob-content-length", "4096")
			if r.URL.Query().Get("comp") == "pagelist" {
				sendXML(w, answer)
				return
			}
			sendXML(w, "<EnumerationResults><Blobs>"+answer+"</Blobs></EnumerationResults>")
		})
		tgt := s.target(t, Options{})
		var err error
		if strings.HasPrefix(answer, "<PageList>") {
			_, err = tgt.Ranges(t.Context(), "n", "", 0, 4096)
		} else {
			for _, e := range tgt.List(t.Context(), "") {
				err = errors.Join(err, e)
			}
		}
		var e *target.Error
		if !errors.As(err, &e) || e.Code != "not-the-service" || e.Class != retry.Recoverable || e.Outcome != target.Known || e.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A list without entries that never ends is given up.
func TestListOfEmptyPagesEnds(t *testing.T) {
	n := 0
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		n++
		sendXML(w, fmt.Sprintf("<EnumerationResults><Blobs></Blobs><NextMarker>%d</NextMarker></EnumerationResults>", n))
	})
	if _, err := s.target(t, Options{}).Snapshots(t.Context(), "n"); !errors.Is(err, errNotService) || n > maxEmptyPages+1 {
		t.Errorf("%d pages: %v", n, err)
	}
}

// What an answer that is no data may hold is bounded.
func TestAnswersAreBounded(t *testing.T) {
	endless := func(req *http.Request, status int) io.ReadCloser {
		return bounded(req, &http.Response{StatusCode: status, Body: io.NopCloser(zeros{})})
	}
	for _, c := range []struct {
		method, query string
		status        int
		data          bool
	}{{"GET", "comp=list", 200, false}, {"GET", "", 200, true}, {"GET", "snapshot=x", 206, true}, {"GET", "", 404, false}, {"PUT", "comp=page", 201, false}} {
		req := httptest.NewRequest(c.method, "/a/b?"+c.query, nil)
		n, _ := io.CopyN(io.Discard, endless(req, c.status), maxAnswer+1)
		if (n > maxAnswer) != c.data {
			t.Errorf("%+v: %d bytes", c, n)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// http leaves this machine under no name.
func TestPlainTextStaysHere(t *testing.T) {
	var sent bytes.Buffer
	far := func(context.Context, string, string) (net.Conn, error) { return &farConn{sent: &sent}, nil }
	tgt := open(t, Options{URL: "http://acct.localhost:10000/box", DialContext: far, Env: func(name string) string {
		return map[string]string{"AZURE_STORAGE_KEY": keyA}[name]
	}})
	e := put(t, tgt)
	if e.Code != "http-off-host" || e.Class != retry.NonRecoverable || !strings.Contains(e.Hint, "use https") || sent.Len() > 0 {
		t.Errorf("%v: %s, %d bytes were sent", e, e.Hint, sent.Len())
	}
}

// farConn leads to another machine.
type farConn struct {
	net.Conn
	sent *bytes.Buffer
}

func (c *farConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }
func (c *farConn) Write(p []byte) (int, error)      { return c.sent.Write(p) }
func (c *farConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *farConn) Close() error                     { return nil }
func (c *farConn) SetDeadline(time.Time) error      { return nil }
func (c *farConn) SetReadDeadline(time.Time) error  { return nil }
func (c *farConn) SetWriteDeadline(time.Time) error { return nil }
