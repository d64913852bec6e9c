package appliance

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// The rules of a start after a clean stop (DESIGN §5): whatever was done to an image
// meanwhile, the next point has what it holds.
func TestR5_AfterACleanStop(t *testing.T) {
	replace := func(r *rig, content []byte) {
		path := filepath.Join(r.source, "web/os.img")
		r.must(os.WriteFile(path+".new", content, 0o644))
		r.must(os.Rename(path+".new", path))
	}
	for name, c := range map[string]struct {
		change  func(r *rig, content []byte) []byte
		suspect bool
	}{
		"nothing": {func(_ *rig, content []byte) []byte { return content }, false},
		"written": {func(r *rig, content []byte) []byte {
			copy(content[mib:], "changed")
			r.put("web/os.img", bytes.Clone(content))
			return content
		}, true},
		"grown": {func(r *rig, content []byte) []byte {
			content = append(content, r.content(mib+5000)...)
			r.put("web/os.img", bytes.Clone(content))
			return content
		}, true},
		"grown by a hole": {func(r *rig, content []byte) []byte {
			r.must(os.Truncate(filepath.Join(r.source, "web/os.img"), 5*mib))
			return append(content, make([]byte, 2*mib)...)
		}, true},
		"shrunk": {func(r *rig, content []byte) []byte {
			r.must(os.Truncate(filepath.Join(r.source, "web/os.img"), 2*mib))
			return content[:2*mib]
		}, true},
		"replaced": {func(r *rig, content []byte) []byte {
			copy(content, "another file")
			replace(r, content)
			return content
		}, true},
		"replaced by a longer one": {func(r *rig, content []byte) []byte {
			content = append(content, r.content(mib)...)
			replace(r, content)
			return content
		}, true},
		"its times put back": {func(r *rig, content []byte) []byte {
			path := filepath.Join(r.source, "web/os.img")
			st, err := os.Stat(path)
			r.must(err)
			copy(content, "changed")
			r.put("web/os.img", bytes.Clone(content))
			r.must(os.Chtimes(path, st.ModTime(), st.ModTime()))
			return content
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content := r.content(3 * mib)
			r.put("web/os.img", bytes.Clone(content))
			r.start()
			r.sync("web")
			id := r.diskID("web", "os.img")
			r.stop()
			content = c.change(r, content)
			r.start()
			r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
			v := r.vm("web")
			if (v.Recovery.SuspectBytes > 0) != c.suspect || (v.Recovery.Reason != "") != c.suspect {
				t.Errorf("%+v", v.Recovery)
			}
			if now := r.diskID("web", "os.img"); now != id {
				t.Error("it is another disk, replicated anew")
			}
		})
	}
}

// The rules after a crash in the same boot: what the appliance itself may have written,
// up to two heartbeats ahead, costs the active regions; a later change all of the disk.
func TestR6_AfterACrash(t *testing.T) {
	r := newRig(t)
	content := r.content(9 * mib)
	r.put("web/os.img", bytes.Clone(content))
	cmd := r.child()
	r.sync("web")
	change := func(text string) {
		r.change("web/os.img", 8*mib, []byte(text))
		copy(content[8*mib:], text)
	}
	change("ours")
	r.kill(cmd)
	r.clock = "-1h" // its last heartbeat will be older than the image
	cmd = r.child()
	if v := r.vm("web"); v.Recovery.SuspectBytes == 0 || v.Recovery.SuspectBytes >= 8*mib {
		t.Errorf("after a crash: %+v", v.Recovery)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	change("more")
	r.kill(cmd)
	r.clock = ""
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if v := r.vm("web"); v.Recovery.SuspectBytes < 9*mib || !strings.Contains(v.Recovery.Reason, "heartbeat") {
		t.Errorf("after a change later than the last heartbeat: %+v", v.Recovery)
	}
}

// What a VM that the config leaves out is served with is marked: in whatever boot it
// comes back, it is compared, and nothing is sent that the target has.
func TestVMLeavesTheConfigAndComesBack(t *testing.T) {
	r := newRig(t)
	content := r.content(4 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("db/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.sync("db")
	id := r.diskID("web", "os.img")
	r.stop()

	off := func() {
		conf := r.config()
		tracking := false
		conf.Stores[0].VMs = append(conf.Stores[0].VMs, webWithoutTracking(&tracking))
		r.must(r.tryStart(conf))
	}
	off()
	if _, err := r.client.Status(r.ctx(), "web"); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("status of a VM that is left out: %v", err)
	}
	if !r.logged("image is not tracked") || !r.logged("vm-left-out") {
		t.Error("nothing says that it is left out")
	}
	if !suspectMark(r, "web/os.img") || suspectMark(r, "db/os.img") {
		t.Error("in a later boot nothing would tell what was written in this one")
	}
	r.change("web/os.img", mib, []byte("untracked"))
	copy(content[mib:], "untracked")
	r.stop()
	off()
	r.stop()

	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	v := r.vm("web")
	if now := r.diskID("web", "os.img"); now != id || v.Recovery.ComparedBytes < 4*mib || v.Recovery.DifferingBytes != 4096 {
		t.Errorf("disk %s, was %s; %+v", now, id, v.Recovery)
	}
	if v := r.vm("db"); v.Recovery.SuspectBytes != 0 {
		t.Errorf("the other VM: %+v", v.Recovery)
	}
}
