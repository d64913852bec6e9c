package preflight

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// rig is a store, a state directory and a fake target that all are as they should be.
type rig struct {
	t       *testing.T
	source  string
	mount   string
	state   string
	target  *fake.Fake
	options Options
	stages  []string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, source: filepath.Join(dir, "source"), mount: filepath.Join(dir, "mount"), state: filepath.Join(dir, "state"), target: fake.New(fake.Options{})}
	for _, d := range []string{r.source, r.mount, r.state} {
		r.must(os.Mkdir(d, 0o700))
	}
	conf := config.Default()
	conf.StateDir = r.state
	conf.Stores = []config.Store{{Name: "main", Source: r.source, Mount: r.mount}}
	r.options = Options{
		Config: conf,
		Belongs: func(_ config.Store, image string) (vm, disk string, ok bool) {
			vm, disk, ok = strings.Cut(image, "/")
			return vm, disk, ok && vm != "excluded"
		},
		Open:     func(context.Context) (target.Target, error) { return r.target, nil },
		Progress: func(p control.Progress) { r.stages = append(r.stages, p.Stage) },
	}
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// put makes a file of the store; content stands at its beginning, the rest is a hole.
func (r *rig) put(name string, size int64, content []byte) {
	r.t.Helper()
	path := filepath.Join(r.source, name)
	r.must(os.MkdirAll(filepath.Dir(path), 0o700))
	r.must(os.WriteFile(path, content, 0o600))
	r.must(os.Truncate(path, size))
}

// bytes makes a file of the store that is b and no more.
func (r *rig) bytes(name string, b []byte) { r.put(name, int64(len(b)), b) }

// vhd makes a fixed VHD.
func (r *rig) vhd(name string, size int64) {
	r.t.Helper()
	r.put(name, size+image.FooterSize, nil)
	footer := image.FixedFooter(size, [16]byte{1}, time.Unix(1e9, 0))
	f, err := os.OpenFile(filepath.Join(r.source, name), os.O_WRONLY, 0)
	r.must(err)
	_, err = f.WriteAt(footer[:], size)
	r.must(err)
	r.must(f.Close())
}

func (r *rig) run() control.Preflight {
	r.t.Helper()
	p, err := Run(r.t.Context(), r.options)
	r.must(err)
	r.clean()
	for _, c := range p.Checks {
		if c.Message == "" || c.Result != control.CheckPass && c.Action == "" {
			r.t.Errorf("%+v says too little", c)
		}
	}
	return p
}

// clean fails unless a run left nothing behind.
func (r *rig) clean() {
	r.t.Helper()
	for item, err := range r.target.Clone().List(context.Background(), scratchPrefix) {
		r.t.Errorf("left at the target: %s, %v", item.Name, err)
	}
	entries, err := os.ReadDir(r.state)
	r.must(err)
	for _, e := range entries {
		r.t.Errorf("left in the state directory: %s", e.Name())
	}
}

// find is the check of a code, about a disk unless that is "".
func find(p control.Preflight, code, disk string) control.Check {
	for _, c := range p.Checks {
		if c.Code == code && c.Disk == disk {
			return c
		}
	}
	return control.Check{}
}

// expect fails unless the check has the result, and the message the text.
func (r *rig) expect(p control.Preflight, code, disk string, result control.CheckResult, text string) {
	r.t.Helper()
	c := find(p, code, disk)
	if c.Result != result || !strings.Contains(c.Message+" "+c.Action, text) {
		r.t.Errorf("%s %s: %+v, want %s and %q", code, disk, c, result, text)
	}
}

// mbr is a boot sector; active marks its first partition.
func mbr(active bool) []byte {
	b := make([]byte, 2*sector)
	binary.LittleEndian.PutUint16(b[510:], mbrSignature)
	if active {
		b[mbrEntries] = mbrActive
	}
	return b
}

// gpt is the beginning of a disk with n partitions, an EFI system partition the last of them if esp.
func gpt(n int, esp bool) []byte {
	b := append(mbr(false), make([]byte, 128*sector)...)
	header := b[sector:]
	copy(header, gptMagic)
	binary.LittleEndian.PutUint64(header[72:], 2)
	binary.LittleEndian.PutUint32(header[80:], uint32(n))
	binary.LittleEndian.PutUint32(header[84:], 128)
	for i := range n {
		entry := b[2*sector+128*i:]
		entry[0] = 1
		if esp && i == n-1 {
			copy(entry, espType)
		}
	}
	return b
}
