package appliance

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// The rule of the hour, or what the account takes, whichever is less.
func TestBandwidth(t *testing.T) {
	a := &Appliance{pacer: retry.NewPacer(), now: func() time.Time { return time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) }}
	conf := config.Default()
	a.conf.Store(conf)
	if got := a.bandwidth(); got != 0 {
		t.Errorf("no rule, no throttling: %d", got)
	}
	conf.Bandwidth = []config.Bandwidth{{Window: config.Window{Days: config.EveryDay, From: 8 * 60, To: 18 * 60}, Limit: 1 << 30}}
	if got := a.bandwidth(); got != 1<<30 {
		t.Errorf("in the window: %d", got)
	}
	a.pacer.Throttled(0)
	if got := a.bandwidth(); got <= 0 || got >= 1<<30 {
		t.Errorf("throttled: %d", got)
	}
	conf.Bandwidth = nil
	if got := a.bandwidth(); got <= 0 || got >= 1<<30 {
		t.Errorf("throttled, no rule: %d", got)
	}
}

func TestSourceFindsData(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x.img"))
	if err != nil {
		t.Fatal(err)
	}
	s := source{file: f}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	start, end, err := s.NextData(0)
	if err != nil || start > 4<<20 || end < 5<<20 {
		t.Errorf("%d %d %v", start, end, err)
	}
	if start, end, err = s.allData(1 << 20); start != 1<<20 || end != 8<<20 || err != nil {
		t.Errorf("%d %d %v", start, end, err)
	}
	if _, _, err = s.NextData(9 << 20); err != io.EOF {
		t.Errorf("past the end: %v", err)
	}
	if _, _, err = s.allData(9 << 20); err != io.EOF {
		t.Errorf("past the end: %v", err)
	}
	if err := s.Datasync(); err != nil {
		t.Error(err)
	}
	if size, err := s.Size(); size != 8<<20 || err != nil {
		t.Errorf("%d %v", size, err)
	}
	f.Close()
	_, sizeErr := s.Size()
	_, readErr := s.ReadAt(make([]byte, 1), 0)
	_, _, seekErr := s.NextData(0)
	for _, err := range []error{sizeErr, readErr, seekErr, s.Datasync()} {
		if class, code, _, _ := retry.Describe(err); class != retry.Recoverable || code != "disk-removed" {
			t.Errorf("a removed disk: %v is %v %s", err, class, code)
		}
	}
}

func TestOpenWantsTheFileItWasAskedFor(t *testing.T) {
	dir := t.TempDir()
	s := newStore(&Appliance{log: discard}, config.Store{Source: dir})
	path := filepath.Join(dir, "x.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Symlink(path, filepath.Join(dir, "link.img"))); err != nil {
		t.Fatal(err)
	}
	id, err := fs.Identify(path)
	if err != nil {
		t.Fatal(err)
	}
	key := fileID{id.Dev, id.Ino}
	f, err := s.open("x.img", key)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if !s.leadsTo("x.img", key) || s.leadsTo("link.img", key) || s.leadsTo("none.img", key) {
		t.Error("leadsTo")
	}
	if _, err := s.open("x.img", fileID{id.Dev, id.Ino + 1}); err == nil {
		t.Error("another file was opened")
	}
	if _, err := s.open("link.img", key); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link: %v", err)
	}
}

func TestRefusing(t *testing.T) {
	r := refusing{unix.EROFS}
	if _, err := r.Begin(extent.Change{}); !errors.Is(err, unix.EROFS) {
		t.Errorf("%v", err)
	}
	r.End(extent.Change{}, nil, nil)
}

// What is mounted inside a source is not served, so it is not looked at either.
func TestWalkStaysOnItsDevice(t *testing.T) {
	dir := t.TempDir()
	s := newStore(&Appliance{log: discard}, config.Store{Source: dir})
	inner := filepath.Join(dir, "inner")
	for _, name := range []string{"a.qcow2", "sub/b.vmdk", "sub/c.img"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		t.Skip("needs root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(inner, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(inner, "d.qcow2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.survey(); err != nil {
		t.Fatal(err)
	}
	if got := append(s.unsupportedOf("a.qcow2"), s.unsupportedOf("sub")...); len(got) != 2 || len(s.mu.unsupported) != 2 {
		t.Errorf("%q of %q", got, s.mu.unsupported)
	}
	s.conf.Source = filepath.Join(dir, "gone")
	if err := s.survey(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestImageInfo(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	info, err := ImageInfo(nil, write("x.vhd", vhd(make([]byte, 1<<20))))
	if err != nil || info.Format != "vhd-fixed" || info.VirtualSize != 1<<20 || info.FileSize != 1<<20+512 || info.ID == "" {
		t.Errorf("%+v %v", info, err)
	}
	info, err = ImageInfo(nil, write("x.img", make([]byte, 4096)))
	if err != nil || info.Format != "raw" || info.ID != "" {
		t.Errorf("%+v %v", info, err)
	}
	info, err = ImageInfo(nil, write("foreign.img", append([]byte("QFI\xfb"), make([]byte, 4096)...)))
	if err != nil || info.Format != "qcow2" || len(info.Notes) == 0 {
		t.Errorf("served but not protected: %+v %v", info, err)
	}
	if _, err = ImageInfo(nil, write("torn.vhd", make([]byte, 4096))); !errors.Is(err, &control.Error{Code: "bad-image"}) {
		t.Errorf("%v", err)
	}
	if _, err = ImageInfo(nil, filepath.Join(dir, "none.img")); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
}
