package appliance

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
)

// hangs lets nothing that the mount tells be done until the returned function is called.
func (s *store) hangs() (release func()) {
	began, wait := make(chan struct{}), make(chan struct{})
	go s.order.do(func() { close(began); <-wait })
	<-began
	return sync.OnceFunc(func() { close(wait) })
}

func TestOrderIsKeptAndPatienceEnds(t *testing.T) {
	var o order
	var done []int
	wait := make(chan struct{})
	o.patience.Store(int64(10 * time.Millisecond))
	if o.do(func() { <-wait; done = append(done, 0) }) {
		t.Error("it waited for the end")
	}
	for i := range 5 {
		if o.do(func() { done = append(done, i+1) }) {
			t.Error("one has overtaken another")
		}
	}
	close(wait)
	o.patience.Store(0)
	if !o.do(func() { done = append(done, 6) }) || !slices.Equal(done, []int{0, 1, 2, 3, 4, 5, 6}) {
		t.Errorf("%v", done)
	}
}

// The state disk hangs: images are created, renamed, opened and removed at the mount all the same, each within seconds. What
// was served untracked is marked on itself at once, and when the disk answers it is a disk, compared, and in the points with
// everything that was written meanwhile.
func TestI9_TheMountDoesNotWaitForAHangingStateDisk(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", r.content(mib))
	r.put("web/old.img", r.content(mib))
	r.put("web/away.img", r.content(mib))
	r.start()
	r.sync("web")
	release := r.app.stores[0].hangs()
	defer release()
	began := time.Now()
	guest, err := os.OpenFile(filepath.Join(r.mount, "web/new.img"), os.O_RDWR|os.O_CREATE, 0o600)
	r.must(err)
	defer guest.Close()
	_, err = guest.WriteAt(content[:mib/2], 0)
	r.must(err)
	r.must(os.Rename(filepath.Join(r.mount, "web/old.img"), filepath.Join(r.mount, "web/other.img")))
	r.must(os.Remove(filepath.Join(r.mount, "web/away.img")))
	_, err = guest.WriteAt(content[mib/2:], mib/2)
	r.must(err)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the mount waited %v", took)
	}
	if n, err := unix.Getxattr(filepath.Join(r.source, "web/new.img"), "user.vhdrelay.suspect", nil); err != nil {
		t.Errorf("it is not marked: %d, %v", n, err)
	}
	release()
	r.await("web", "the disks as they are", func(v control.VM) bool {
		var names []string
		for _, d := range v.Disks {
			names = append(names, d.Name)
		}
		slices.Sort(names)
		return slices.Equal(names, []string{"new.img", "os.img", "other.img"})
	})
	want := map[string][]byte{"new.img": content}
	for _, name := range []string{"os.img", "other.img"} {
		want[name], err = os.ReadFile(filepath.Join(r.source, "web", name))
		r.must(err)
	}
	r.await("web", "Normal", normal)
	r.equals("web", r.sync("web"), want)
	copy(content[8192:], "tracked from here on")
	_, err = guest.WriteAt(content[8192:16384], 8192)
	r.must(err)
	r.equals("web", r.sync("web"), want)
}

// A journal whose commit hangs is what the bound is for.
func TestI9_AttachEndsWhenTheJournalHangs(t *testing.T) {
	b := newBubble(t, "", map[string][]byte{"web/os.img": make([]byte, mib), "web/two.img": make([]byte, mib)})
	defer b.end()
	b.store.order.patience.Store(int64(50 * time.Millisecond))
	wait := make(chan struct{})
	b.hangs.Store(&wait)
	b.put("web/new.img", bytes.Repeat([]byte{1}, mib))
	ids := map[string]fs.Identity{}
	for _, name := range []string{"web/new.img", "web/two.img"} {
		id, err := fs.Identify(filepath.Join(b.source, name))
		b.must(err)
		ids[name] = id
	}
	ended := make(chan fs.Tracker, 1)
	go func() {
		tracker := b.store.Attach("web/new.img", ids["web/new.img"])
		b.must(os.Remove(filepath.Join(b.source, "web/two.img")))
		b.store.Removed("web/two.img", ids["web/two.img"])
		ended <- tracker
	}()
	select {
	case tracker := <-ended:
		if tracker != nil {
			t.Errorf("it is tracked: %v", tracker)
		}
	case <-time.After(10 * time.Second):
		t.Error("the mount waits for the journal")
	}
	close(wait)
	if tracker := b.store.Attach("web/new.img", ids["web/new.img"]); tracker == nil {
		b.store.order.patience.Store(0)
		if tracker = b.store.Attach("web/new.img", ids["web/new.img"]); tracker == nil {
			t.Error("it is never tracked")
		}
	}
	b.store.order.patience.Store(0)
	b.store.order.do(func() {})
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	for _, a := range b.store.mu.images {
		if a.at() == "web/two.img" {
			t.Error("what was removed is a disk still")
		}
		if a.at() == "web/new.img" && !a.disk.Suspected() && a.doubt != reasonServedBare {
			t.Error("nobody doubts what was written meanwhile")
		}
	}
}
