package appliance

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Names that no blob and no URL would take reach the target and come back from it, on a
// machine that has nothing but the target: to the byte.
func TestNamesComeBack(t *testing.T) {
	long := func(n int, ext string) string { return strings.Repeat("x", n-len(ext)) + ext }
	disks := map[string][]string{
		"trailing.":             {"a..img", " lead.img", "trail .raw"},
		"two\nlines":            {"a\nb.img", "tab\t\x01\x7f.raw", "back\\slash.img"},
		"Größe 日本":              {"диск.img", "🖥.raw"},
		"points":                {"vm.json.img", "replica.vhd", "~7E.img", "a%2Fb.img"},
		long(255, ""):           {long(255, ".img"), long(255, ".raw"), long(240, ".img")},
		"~~" + long(100, ""):    {"~~.img"},
		"a?b#c&d=e:f*g|h<i>\"j": {"q?.img", "q#.img"},
	}
	r := newRig(t)
	want := map[string]map[string][]byte{}
	for vm, names := range disks {
		want[vm] = map[string][]byte{}
		for _, name := range names {
			content := r.content(64 << 10)
			if strings.HasSuffix(name, ".vhd") {
				r.put(filepath.Join(vm, name), vhd(content))
			} else {
				r.put(filepath.Join(vm, name), bytes.Clone(content))
			}
			want[vm][name] = content
		}
	}
	r.start()
	points := map[string]string{}
	for vm := range disks {
		points[vm] = r.sync(vm)
	}
	r.stop()
	r.must(os.RemoveAll(r.state)) // another machine
	for vm, point := range points {
		r.equals(vm, point, want[vm])
	}
}

// A name that is no UTF-8 would not come back from a record: its image is served
// untracked, marked, and says so, until it has another name.
func TestNameThatIsNoUTF8(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("web/\xff.img", bytes.Clone(content))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	v := r.vm("web")
	if !hasReason("image-untracked")(v) || !strings.Contains(v.Reasons[0].Message, "not UTF-8") || !suspectMark(r, "web/\xff.img") {
		t.Errorf("%+v", v.Reasons)
	}
	r.rename("web/\xff.img", "web/named.img")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content, "named.img": content})
	if v := r.vm("web"); hasReason("image-untracked")(v) {
		t.Errorf("%+v", v.Reasons)
	}
	r.rename("web/named.img", "web/\x80.img")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}
