package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestWriteFileReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, data := range []string{"one", "", "three"} {
		if err := WriteFile(path, []byte(data)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, path); got != data {
			t.Fatalf("%q, want %q", got, data)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"f"}) {
		t.Fatal(got)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatal(fi, err)
	}
}

func TestRemoveMayBeRepeated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteFile(path, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(filepath.Join(filepath.Dir(path), "none", "f")); !isNotExist(err) {
		t.Fatalf("without its directory: %v", err)
	}
}

func TestErrorsOfTheSystemComeThrough(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "none", "f"), nil); !isNotExist(err) {
		t.Fatal(err)
	}
	if err := WriteFile(dir, nil); err == nil { // a directory is not replaced
		t.Fatal("accepted")
	}
	if err := (OS{}).SyncDir(filepath.Join(dir, "none")); !isNotExist(err) {
		t.Fatal(err)
	}
	if f, err := (OS{}).Create(dir); f != nil || err == nil {
		t.Fatal(f, err)
	}
}

var errInjected = errors.New("injected")

// flaky is the real file system; the k-th operation fails, and all are written down.
type flaky struct {
	OS
	k   int
	ops []string
}

func (f *flaky) op(name, path string) error {
	f.ops = append(f.ops, name+" "+filepath.Base(path))
	if len(f.ops) == f.k {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

func (f *flaky) Create(path string) (File, error) {
	if err := f.op("create", path); err != nil {
		return nil, err
	}
	file, err := f.OS.Create(path)
	return &flakyFile{file, f, path}, err
}

func (f *flaky) Rename(from, to string) error {
	if err := f.op("rename", to); err != nil {
		return err
	}
	return f.OS.Rename(from, to)
}

func (f *flaky) Remove(path string) error {
	if err := f.op("remove", path); err != nil {
		return err
	}
	return f.OS.Remove(path)
}

func (f *flaky) SyncDir(path string) error {
	if err := f.op("syncdir", ""); err != nil {
		return err
	}
	return f.OS.SyncDir(path)
}

type flakyFile struct {
	File
	f    *flaky
	path string
}

func (f *flakyFile) Write(p []byte) (int, error) {
	if err := f.f.op("write", f.path); err != nil {
		n, _ := f.File.Write(p[:len(p)/2]) // half of it is there
		return n, err
	}
	return f.File.Write(p)
}

func (f *flakyFile) Sync() error {
	if err := f.f.op("sync", f.path); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *flakyFile) Close() error {
	_ = f.File.Close() // even when it says it failed, as close(2) does
	return f.f.op("close", f.path)
}

// Fail the k-th operation, for every k: the file is the old one or the new one, the error comes out, no temporary file stays.
func TestEveryOperationFails(t *testing.T) {
	for k := 1; ; k++ {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		if err := WriteFile(path, []byte("old")); err != nil {
			t.Fatal(err)
		}
		fs := &flaky{k: k}
		err := WriteFileIn(fs, path, []byte("newer"))
		if len(fs.ops) < k {
			if err != nil || content(t, path) != "newer" {
				t.Fatal(err)
			}
			want := "create f.tmp, write f.tmp, sync f.tmp, close f.tmp, rename f, syncdir ."
			if got := strings.Join(fs.ops, ", "); got != want {
				t.Fatalf("order %s", got)
			}
			return
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("%v failed and nobody said so: %v", fs.ops, err)
		}
		want := "old"
		if strings.HasPrefix(fs.ops[k-1], "syncdir") {
			want = "newer"
		}
		if got := content(t, path); got != want {
			t.Fatalf("%v: %q, want %q", fs.ops, got, want)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"f"}) {
			t.Fatalf("%v: %v", fs.ops, got)
		}
	}
}

func TestRemoveFails(t *testing.T) {
	for k := 1; k <= 2; k++ {
		path := filepath.Join(t.TempDir(), "f")
		if err := WriteFile(path, nil); err != nil {
			t.Fatal(err)
		}
		if err := RemoveIn(&flaky{k: k}, path); !errors.Is(err, errInjected) {
			t.Fatal(k, err)
		}
	}
}
