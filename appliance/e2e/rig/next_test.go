package rig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The constants are where BuildNext looks for them, and nothing else of the source changes.
func TestVersionsAreRaised(t *testing.T) {
	for _, v := range raised {
		source, err := os.ReadFile(filepath.Join("..", "..", "..", filepath.Base(v.pkg), v.file))
		if err != nil {
			t.Fatal(err)
		}
		next, err := raise(source, v.constant)
		if err != nil {
			t.Fatalf("%s: %v", v.file, err)
		}
		if got := strings.Replace(string(next), " + 1\n", "\n", 1); got != string(source) {
			t.Errorf("%s: more than the constant", v.file)
		}
		if _, err := raise(append(source, source...), v.constant); !errors.Is(err, ErrNoConstant) {
			t.Errorf("two constants: %v", err)
		}
		if _, err := raise(nil, v.constant); !errors.Is(err, ErrNoConstant) {
			t.Errorf("no constant: %v", err)
		}
	}
}

func TestInstalledIsServedNext(t *testing.T) {
	r := &Rig{Options: Options{Dir: t.TempDir()}}
	if err := os.Mkdir(filepath.Join(r.Dir, "keeper"), 0o700); err != nil {
		t.Fatal(err)
	}
	if codes, err := r.Exits(); err != nil || len(codes) != 0 {
		t.Errorf("%v, %v", codes, err)
	}
	for _, binary := range []string{"/one", "/two"} {
		if err := r.Install(binary); err != nil {
			t.Fatal(err)
		}
		if to, err := os.Readlink(r.installed()); err != nil || to != binary || r.Binary != binary {
			t.Errorf("%s, %s: %v", to, r.Binary, err)
		}
	}
	k := &keeper{dir: filepath.Dir(r.installed())}
	if err := errors.Join(k.note(6), k.note(1)); err != nil {
		t.Fatal(err)
	}
	if codes, err := r.Exits(); err != nil || len(codes) != 2 || codes[0] != 6 || codes[1] != 1 {
		t.Errorf("%v, %v", codes, err)
	}
	if r.Serves() {
		t.Error("nobody serves")
	}
}
