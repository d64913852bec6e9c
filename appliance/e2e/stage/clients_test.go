package stage

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

func TestNamesOfClients(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range allClients {
		if c.name == "" || c.run == nil || seen[c.name] {
			t.Errorf("%q", c.name)
		}
		seen[c.name] = true
	}
}

// A client whose tool is missing says what to install, and is not run.
func TestMissingToolOfAClient(t *testing.T) {
	x := &clients{client: client{name: "x", tools: []string{"sh", "no-such-tool:its-package", "neither-this"}}}
	if got := x.lacking(); !slices.Equal(got, []string{"its-package", "neither-this"}) {
		t.Fatal(got)
	}
	var out bytes.Buffer
	x.env = &Env{Out: &out}
	r := NewReport(&out)
	x.turn(t.Context(), r)
	if !strings.Contains(out.String(), "apt-get install its-package neither-this") || len(r.Failures()) != 0 {
		t.Fatal(out.String(), r.Failures())
	}
}

func scriptRig(t *testing.T) *clients {
	t.Helper()
	dir := t.TempDir()
	x := &clients{client: client{name: "x"}, rig: &rig.Rig{Options: rig.Options{Dir: dir, Mount: filepath.Join(dir, "mount"), Source: filepath.Join(dir, "source")}}}
	for _, d := range []string{x.dir(), x.source(), x.scratch(), x.export()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// A script ends at its first error, shows its output, and finds its directories.
func TestScriptOfAClient(t *testing.T) {
	x := scriptRig(t)
	if err := x.script(t.Context(), `test "$A" = b; echo "$TMP" > here`, "A=b"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(x.dir(), "here")); err != nil || string(got) != x.scratch()+"\n" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := x.script(t.Context(), "echo shown; false; touch after"); err == nil || !strings.Contains(err.Error(), "shown") {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(x.dir(), "after")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("it went on")
	}
}

// One byte that differs is found wherever it is, but not behind the data of a VHD.
func TestSame(t *testing.T) {
	for _, name := range []string{"a.raw", "a.vhd"} {
		x := scriptRig(t)
		data := bytes.Repeat([]byte{7}, 8192)
		at := map[string]string{"source": filepath.Join(x.source(), name), "mount": filepath.Join(x.dir(), name), "export": rig.Exported(x.export(), name)}
		put := func(where string, pos int) {
			d := bytes.Clone(data)
			if pos >= 0 {
				d[pos]++
			}
			if err := os.WriteFile(at[where], d, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for where := range at {
			put(where, -1)
		}
		if err := x.same(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		for _, where := range []string{"mount", "export"} {
			put(where, 7000)
			if x.same(t.Context(), name) == nil {
				t.Errorf("%s: the %s differs", name, where)
			}
			put(where, -1)
		}
		put("export", 8191)
		if err := x.same(t.Context(), name); (err == nil) != (name == "a.vhd") {
			t.Errorf("%s, last byte: %v", name, err)
		}
		if err := os.Truncate(at["export"], 4096); err != nil {
			t.Fatal(err)
		}
		if x.same(t.Context(), name) == nil {
			t.Errorf("%s: the export is short", name)
		}
	}
}
