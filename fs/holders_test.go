package fs

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// Who has files below the mount is found by what /proc says, each path once; this process is not.
func TestHolders(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	mustWrite(t, filepath.Join(dir, "a.img"), nil)
	mine, err := os.Open(filepath.Join(dir, "a.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	cmd := exec.Command("sh", "-c", "exec 3<"+dir+"/a.img 4<"+dir+"/a.img; echo ready; read line || true")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	got, err := Holders(dir)
	if want := []Holder{{cmd.Process.Pid, "."}, {cmd.Process.Pid, "a.img"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := Holders(other); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// What lies inside a directory, and on what, is read from the mount table.
func TestMountsBelowAndServed(t *testing.T) {
	m := newTestStore(t)
	if got, err := MountsBelow(filepath.Dir(m.mnt)); err != nil || !slices.Contains(got, m.mnt) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := MountsBelow(m.mnt); err != nil || len(got) != 0 {
		t.Errorf("the mount itself: %q, %v", got, err)
	}
	if err := os.Mkdir(m.path("web"), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{m.mnt: true, m.path("web"): true, m.src: false, "/": false} {
		if got, err := Served(dir); err != nil || got != want {
			t.Errorf("%s: %v, %v", dir, got, err)
		}
	}
	if _, err := Served(m.path("none")); err == nil {
		t.Error("a directory that is not there")
	}
	if dead, err := Dead(m.mnt); err != nil || dead {
		t.Errorf("a living mount: %v, %v", dead, err)
	}
}
