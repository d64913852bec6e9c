package badgerkv

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// filled is a closed store with a table, and the path of that.
func filled(t *testing.T) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir)
	for i := range 40 {
		var b kv.Batch
		b.Put(fmt.Appendf(nil, "k/%04d", i), bytes.Repeat([]byte{byte(i)}, 300))
		if err := s.Apply(&b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(tables) != 1 {
		t.Fatalf("%v, %v", tables, err)
	}
	return dir, tables[0]
}

// I9: a table that is damaged is an error at the opening, wherever the damage is. Badger ends the process over some of it,
// and takes some of it for an end of the data.
func TestI9_DamagedTableIsAnError(t *testing.T) {
	dir, path := filled(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := provenTable(data); err != nil {
		t.Fatal(err)
	}
	for at := range data {
		data[at] ^= 0x10
		if err := provenTable(data); err == nil {
			t.Fatalf("byte %d of %d was changed, and nobody sees it", at, len(data))
		}
		data[at] ^= 0x10
	}
	for n := range len(data) {
		if err := provenTable(data[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes, and nobody sees it", n, len(data))
		}
	}
	for _, at := range []int{0, len(data) / 2, len(data) - 1, len(data) - 20} {
		spoilt := bytes.Clone(data)
		spoilt[at] ^= 1
		if err := os.WriteFile(path, spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d: %v, %v", at, s, err)
		}
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if v, err := s.Get([]byte("k/0007")); err != nil || !bytes.Equal(v, bytes.Repeat([]byte{7}, 300)) {
		t.Errorf("mended: %v, %v", v, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestI9_MissingTableAndRottenListAreErrors(t *testing.T) {
	dir, path := filled(t)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(dir, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, %v", s, err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "MANIFEST")
	data, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, spoilt := range [][]byte{{}, []byte("rotten"), append(bytes.Clone(data[:9]), append([]byte{data[9] ^ 1}, data[10:]...)...)} {
		if err := os.WriteFile(list, spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v, %v", s, err)
		}
	}
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(list, 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(dir, nil); err == nil || errors.Is(err, ErrDamaged) { // what cannot be read may be all right
		t.Errorf("%v, %v", s, err)
	}
}

// An opening that ends the process is tried again, but not for ever.
func TestI9_OpeningsThatEndTheProcess(t *testing.T) {
	dir, _ := filled(t)
	for range maxDeaths {
		if err := beginOpening(dir); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := Open(dir, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, %v", s, err)
	}
	if err := os.WriteFile(filepath.Join(dir, openingFile), []byte{'.', '.'}, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 * maxDeaths {
		if err := open(t, dir).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, openingFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// Errors of an opening are no deaths.
func TestRefusedOpeningsAreNotCounted(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for range 2 * maxDeaths {
		if _, err := Open(dir, nil); err == nil || errors.Is(err, ErrDamaged) {
			t.Fatalf("%v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := open(t, dir).Close(); err != nil {
		t.Error(err)
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	r := rand.New(rand.NewPCG(1, 2))
	for range 3 {
		p := make([]byte, 200)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := provenTable(data); err == nil && len(data) < 32 {
			t.Errorf("%d bytes are a table", len(data))
		}
		if _, err := blocksOf(data); err == nil && len(data) < 8 {
			t.Errorf("%d bytes are an index", len(data))
		}
	})
}
