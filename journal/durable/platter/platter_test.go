package platter

import (
	"bytes"
	"errors"
	iofs "io/fs"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, d *Disk, path string, data []byte) durable.File {
	t.Helper()
	f, err := d.Create(path)
	must(t, err)
	_, err = f.Write(data)
	must(t, err)
	return f
}

func content(t *testing.T, d *Disk, path string) []byte {
	t.Helper()
	data, err := d.ReadFile(path)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	must(t, err)
	return data
}

// What was synced survives, name and content each by its own sync; of the rest keep decides, page by page.
func TestPowerCut(t *testing.T) {
	d := New(Hooks{})
	must(t, d.MkdirAll("/a"), d.SyncDir("/"))
	old, young := bytes.Repeat([]byte{1}, 3*page), bytes.Repeat([]byte{2}, 3*page)
	f := write(t, d, "/a/synced", old)
	must(t, f.Sync(), f.Close(), d.SyncDir("/a"))
	e, err := d.Edit("/a/synced")
	must(t, err)
	_, err = e.WriteAt(young, 0)
	must(t, err)
	must(t, write(t, d, "/a/nameless", old).Sync())

	if nothing := d.After(Hooks{}, true, nil); !bytes.Equal(content(t, nothing, "/a/synced"), old) || content(t, nothing, "/a/nameless") != nil {
		t.Error("a cut that keeps nothing kept something")
	}
	all := d.After(Hooks{}, true, func() bool { return true })
	if !bytes.Equal(content(t, all, "/a/synced"), young) || !bytes.Equal(content(t, all, "/a/nameless"), old) {
		t.Error("a cut that keeps all lost something")
	}
	turn := 0
	some := d.After(Hooks{}, true, func() bool { turn++; return turn%2 == 0 })
	if got := content(t, some, "/a/synced"); bytes.Equal(got, old) || bytes.Equal(got, young) || len(got) != len(old) {
		t.Error("pages do not survive one by one")
	}
	killed := d.After(Hooks{}, false, nil) // a kill loses nothing, and forgets nothing of what is not synced
	if !bytes.Equal(content(t, killed, "/a/nameless"), old) || content(t, killed.After(Hooks{}, true, nil), "/a/nameless") != nil {
		t.Error("after a kill the file system is another")
	}
}

func TestHooks(t *testing.T) {
	injected, size := errors.New("injected"), int64(0)
	var refused, dead error
	var synced []string
	d := New(Hooks{
		Begin:   func(op, _ string) error { return refused },
		Enter:   func() error { return dead },
		Synced:  func(op, path string) { synced = append(synced, op+" "+path) },
		Resized: func(_ string, by int64) { size += by },
	})
	f := write(t, d, "/f", make([]byte, 100))
	must(t, f.Sync(), d.SyncDir("/"), f.Close())
	write(t, d, "/g", make([]byte, 10))
	must(t, d.Rename("/g", "/f"))
	if size != 10 || len(synced) != 2 || synced[0] != "sync /f" || synced[1] != "syncdir /" {
		t.Errorf("%d bytes, %q", size, synced)
	}
	refused = injected
	if err := d.Remove("/f"); !errors.Is(err, injected) {
		t.Error(err)
	}
	refused, dead = nil, injected
	if err := d.Remove("/f"); !errors.Is(err, injected) || len(content(t, d, "/f")) != 10 {
		t.Error("a dead process removed a file", err)
	}
	dead = nil
	must(t, d.Remove("/f"))
	if size != 0 {
		t.Errorf("%d bytes of nothing", size)
	}
}
