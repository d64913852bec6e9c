package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// recordingVolumes attaches a recorder to every image and writes down what it is told.
type recordingVolumes struct {
	src string
	t   testing.TB
	mu  struct { // files are read under it
		sync.Mutex
		events    []string
		recorders map[Identity]*recorder
		untracked map[string]bool
	}
}

func newRecordingVolumes(t testing.TB, src string) *recordingVolumes {
	v := &recordingVolumes{src: src, t: t}
	v.mu.recorders = map[Identity]*recorder{}
	v.mu.untracked = map[string]bool{}
	return v
}

func (v *recordingVolumes) Attach(path string, id Identity) Tracker {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.events = append(v.mu.events, "attach "+path)
	if v.mu.untracked[path] {
		return nil
	}
	r := v.mu.recorders[id]
	if r == nil {
		f, err := os.Open(filepath.Join(v.src, path))
		if err != nil {
			v.t.Errorf("attach %s: %v", path, err)
			return nil
		}
		r = &recorder{name: path, file: f}
		r.mu.unseen = true
		v.mu.recorders[id] = r
	}
	r.attached()
	return r
}

func (v *recordingVolumes) Renamed(from, to string, id Identity) {
	v.note(fmt.Sprintf("renamed %s %s", from, to))
	if !image.IsImageName(to) {
		v.noDisk(id)
	}
}

// Removed: whoever had looked the name up before may still open the file, and no disk is changed by that.
func (v *recordingVolumes) Removed(path string, id Identity) {
	v.note("removed " + path)
	v.noDisk(id)
}

// Closed: from here on it may be written unseen.
func (v *recordingVolumes) Closed(path string, id Identity) {
	v.note("closed " + path)
	v.noDisk(id)
}

func (v *recordingVolumes) noDisk(id Identity) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if r := v.mu.recorders[id]; r != nil {
		r.noDisk()
	}
}

func (v *recordingVolumes) note(event string) {
	v.mu.Lock()
	v.mu.events = append(v.mu.events, event)
	v.mu.Unlock()
}

// take returns the events since the last call.
func (v *recordingVolumes) take() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.mu.events
	v.mu.events = nil
	return e
}

func (v *recordingVolumes) wantEvents(t testing.TB, want ...string) {
	t.Helper()
	if got := v.take(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// recorder returns the one that was attached for the path first.
func (v *recordingVolumes) recorder(t testing.TB, path string) *recorder {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.mu.recorders {
		if r.name == path {
			return r
		}
	}
	t.Fatalf("%s was never attached", path)
	return nil
}

func (v *recordingVolumes) check(t testing.TB) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.mu.recorders {
		r.check(t)
		r.file.Close()
	}
	clear(v.mu.recorders)
}

// recorder is a Tracker that knows the file's bytes as they were when nothing was in flight. At each Begin it compares:
// a byte that changed outside of all Begin/End pairs is an error.
type recorder struct {
	name string
	file *os.File
	mu   struct { // the file is read under it
		sync.Mutex
		shadow   []byte
		inflight int
		unseen   bool // it was no disk for a while, and may have been written
		changes  []extent.Change
		problems []string
		refuse   error
	}
}

// noDisk says that the file has a name under which nobody tracks it, once it is closed.
func (r *recorder) noDisk() {
	r.mu.Lock()
	r.mu.unseen = true
	r.mu.Unlock()
}

// attached takes the bytes as they are if they may have changed unseen.
func (r *recorder) attached() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.unseen {
		r.mu.shadow, r.mu.unseen = r.contents(), false
	}
}

func (r *recorder) contents() []byte {
	st, err := r.file.Stat()
	if err != nil {
		return nil
	}
	b := make([]byte, st.Size())
	n, _ := r.file.ReadAt(b, 0)
	return b[:n]
}

func (r *recorder) Begin(c extent.Change) (extent.Pass, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.refuse != nil {
		return nil, r.mu.refuse
	}
	r.compareLocked(fmt.Sprintf("before %+v", c))
	r.mu.inflight++
	return r, nil
}

func (r *recorder) End(c extent.Change, p extent.Pass, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p != r {
		r.mu.problems = append(r.mu.problems, fmt.Sprintf("%+v ends with a foreign pass", c))
	}
	r.mu.changes = append(r.mu.changes, c)
	r.mu.inflight--
	r.adoptLocked(c)
	r.compareLocked(fmt.Sprintf("after %+v", c))
}

// adoptLocked takes what c may have changed into the shadow, and nothing else.
func (r *recorder) adoptLocked(c extent.Change) {
	st, err := r.file.Stat()
	if err != nil {
		r.mu.problems = append(r.mu.problems, err.Error())
		return
	}
	size := st.Size()
	if c.Kind == extent.Truncate {
		r.resizeLocked(size)
		return
	}
	if c.Kind == extent.Write || c.Kind == extent.Zero {
		r.resizeLocked(max(int64(len(r.mu.shadow)), min(size, c.Off+c.Len)))
	}
	if end := min(c.Off+c.Len, int64(len(r.mu.shadow))); c.Off < end {
		r.file.ReadAt(r.mu.shadow[c.Off:end], c.Off)
	}
}

func (r *recorder) resizeLocked(size int64) {
	if size <= int64(len(r.mu.shadow)) {
		r.mu.shadow = r.mu.shadow[:size]
		return
	}
	r.mu.shadow = append(r.mu.shadow, make([]byte, size-int64(len(r.mu.shadow)))...)
}

// compareLocked finds a change that began before its Begin or went on after its End. Files over 1 MiB are compared at
// the end of the test only.
func (r *recorder) compareLocked(when string) {
	if r.mu.inflight == 0 && !r.mu.unseen && len(r.mu.shadow) <= 1<<20 && !bytes.Equal(r.mu.shadow, r.contents()) {
		r.mu.problems = append(r.mu.problems, when+": a byte was changed outside of every Begin and End")
	}
}

func (r *recorder) setRefuse(err error) {
	r.mu.Lock()
	r.mu.refuse = err
	r.mu.Unlock()
}

// takeChanges returns the changes since the last call.
func (r *recorder) takeChanges() []extent.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.mu.changes
	r.mu.changes = nil
	return c
}

func (r *recorder) wantChanges(t testing.TB, want ...extent.Change) {
	t.Helper()
	if got := r.takeChanges(); !slices.Equal(got, want) {
		t.Errorf("%s: changes %+v, want %+v", r.name, got, want)
	}
}

func (r *recorder) check(t testing.TB) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.mu.problems {
		t.Errorf("%s: %s", r.name, p)
	}
	if r.mu.inflight != 0 {
		t.Errorf("%s: %d changes never ended", r.name, r.mu.inflight)
	}
	if !r.mu.unseen && !bytes.Equal(r.mu.shadow, r.contents()) {
		t.Errorf("%s: a byte was changed outside of every Begin and End", r.name)
	}
}
