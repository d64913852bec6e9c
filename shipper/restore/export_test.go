package restore_test

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/catalog/catalogtest"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

func export(t *testing.T, w *catalogtest.World, spec, disk, path string, opts restore.ExportOptions) error {
	t.Helper()
	s, err := restore.Hold(t.Context(), w.T, w.VM, spec, []string{disk}, restore.HoldOptions{})
	if err != nil {
		return err
	}
	return errors.Join(s.Export(path, opts), s.Close())
}

func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %v, %d bytes, want %d; first difference at %d", path, err, len(got), len(want), firstDifference(got, want))
	}
}

// wantNames compares a directory's content.
func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(want) {
		t.Fatalf("%s holds %v, %v; want %q", dir, entries, err, want)
	}
	for i, e := range entries {
		if e.Name() != want[i] {
			t.Errorf("%s holds %s, want %s", dir, e.Name(), want[i])
		}
	}
}

func wantVHD(t *testing.T, path string, disk []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	padded := image.PaddedSize(int64(len(disk)))
	if int64(len(got)) != padded+image.FooterSize {
		t.Fatalf("%d bytes for a disk of %d", len(got), len(disk))
	}
	footer, err := image.ParseFooter(got[padded:])
	if err != nil || footer.CurrentSize != padded || footer.Type != image.TypeFixed {
		t.Fatalf("footer %+v, %v", footer, err)
	}
	if !bytes.Equal(got[:len(disk)], disk) || !bytes.Equal(got[len(disk):padded], make([]byte, int(padded)-len(disk))) {
		t.Fatalf("content differs, first at %d", firstDifference(got, disk))
	}
}

// wantVHDX reads the image with our reader and with qemu.
func wantVHDX(t *testing.T, path string, disk []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i, err := vhdx.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	got := imagetest.ReadAll(t, i.Disk(nil))
	whole := append(bytes.Clone(disk), make([]byte, -len(disk)&511)...)
	if !bytes.Equal(got, whole) || i.Info.Format != image.VHDXDynamic || len(i.Info.Notes) != 0 {
		t.Fatalf("%+v; content differs, first at %d", i.Info, firstDifference(got, whole))
	}
	if i.Replayed != 0 || i.Table.FileSize != int64(len(b)) || len(b)%mib != 0 {
		t.Errorf("%d log entries, %d bytes", i.Replayed, len(b))
	}
}

// readers are what every format is held against.
var readers = map[string]func(*testing.T, string, []byte){
	restore.FormatRaw: wantFile, restore.FormatVHD: wantVHD, restore.FormatVHDX: wantVHDX,
}

func TestExportEqualsTheOracle(t *testing.T) {
	w := randomWorld(t, 99, 8)
	dir := t.TempDir()
	for id, disks := range w.Oracle {
		for disk, want := range disks {
			for format, wantImage := range readers {
				path := filepath.Join(dir, id.String()+disk+"."+format)
				if err := export(t, w, id.String(), disk, path, restore.ExportOptions{Format: format}); err != nil {
					t.Fatal(err)
				}
				wantImage(t, path, want)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	pins, err := catalog.Pins(t.Context(), w.T, w.VM)
	if err != nil || len(pins) != 0 {
		t.Errorf("pins left: %v, %v", pins, err)
	}
}

// The image is what another reader says it is.
func TestExportedImagesByQemu(t *testing.T) {
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("no qemu-img")
	}
	w, _, d, ids := chain(t)
	dir := t.TempDir()
	raw := filepath.Join(dir, "a.raw")
	want := make([]byte, image.PaddedSize(int64(len(d.Data))))
	copy(want, w.Oracle[ids[3]][d.ID])
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for format, driver := range map[string]string{restore.FormatVHD: "vpc", restore.FormatVHDX: "vhdx"} {
		path := filepath.Join(dir, "a."+format)
		if err := export(t, w, ids[3].String(), d.ID, path, restore.ExportOptions{Format: format}); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), qemu, "compare", "-f", driver, "-F", "raw", path, raw).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", format, err, out)
		}
		if driver == "vpc" { // qemu knows no check of it
			continue
		}
		if out, err := exec.CommandContext(t.Context(), qemu, "check", "-f", driver, path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", format, err, out)
		}
	}
}

func TestExportIsSparse(t *testing.T) {
	f := fake.New(fake.Options{})
	w := catalogtest.New(t, f, "vm")
	d := w.AddDisk("big.img", 64*mib)
	d.Write(30*mib, []byte("lonely"))
	w.CompleteDisk(d)
	w.Close()
	for format, size := range map[string]int64{restore.FormatRaw: 64 * mib, restore.FormatVHD: 64*mib + image.FooterSize, restore.FormatVHDX: 5 * mib} {
		path := filepath.Join(t.TempDir(), "big."+format)
		if err := export(t, w, "latest", d.Name, path, restore.ExportOptions{Format: format}); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Size() != size {
			t.Fatal(format, info.Size(), err)
		}
		if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > mib {
			t.Errorf("%s: %d bytes allocated for one block", format, used)
		}
	}
}

func TestExportNeverOverwrites(t *testing.T) {
	w, _, d, ids := chain(t)
	path := filepath.Join(t.TempDir(), "os.vhd")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{}); !errors.Is(err, restore.ErrExists) {
		t.Fatalf("over a file: %v", err)
	}
	wantFile(t, path, []byte("precious"))
	if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	wantVHD(t, path, w.Oracle[ids[3]][d.ID])
}

// A file that appears while the export runs is as safe.
func TestExportLosesTheRaceForTheName(t *testing.T) {
	w, _, d, _ := chain(t)
	path := filepath.Join(t.TempDir(), "os.vhd")
	hook := func(point string) error {
		if point == restore.PointProven {
			return os.WriteFile(path, []byte("precious"), 0o600)
		}
		return nil
	}
	if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Hook: hook}); !errors.Is(err, restore.ErrExists) {
		t.Fatal(err)
	}
	wantFile(t, path, []byte("precious"))
}

var errCrash = errors.New("crash")

// big is a disk of several chunks, so that an interruption finds something done.
func big(t *testing.T) (*catalogtest.World, *fake.Fake, *catalogtest.Disk) {
	f := fake.New(fake.Options{})
	w := catalogtest.New(t, f, "vm")
	d := w.AddDisk("big.img", 26*mib+512)
	rng := rand.New(rand.NewPCG(3, 3))
	for off := 0; off < len(d.Data)-4096; off += mib / 2 {
		d.Write(off, []byte{byte(rng.Uint32()) | 1})
	}
	w.CompleteDisk(d)
	for range 3 {
		w.Scribble(rng)
		w.Close()
	}
	return w, f, d
}

func TestExportResumesAtEveryGap(t *testing.T) {
	w, f, d := big(t)
	for format := range readers {
		t.Run(format, func(t *testing.T) { resumesAtEveryGap(t, w, f, d, format) })
	}
}

func resumesAtEveryGap(t *testing.T, w *catalogtest.World, f *fake.Fake, d *catalogtest.Disk, format string) {
	for _, point := range []string{restore.PointCursor, restore.PointProven, restore.PointNamed} {
		for k := range 4 {
			name := "big." + format
			path := filepath.Join(t.TempDir(), name)
			left := k
			opts := restore.ExportOptions{Format: format, SyncBytes: 8 * mib, Hook: func(p string) error {
				if left--; p == point && left < 0 {
					return errCrash
				}
				return nil
			}}
			if err := export(t, w, "latest", d.ID, path, opts); !errors.Is(err, errCrash) {
				t.Fatalf("%s %d: %v", point, k, err)
			}
			_, before := f.Traffic()
			if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Format: format}); err != nil {
				t.Fatalf("%s %d, again: %v", point, k, err)
			}
			_, after := f.Traffic()
			t.Logf("%s %d: %d bytes read", point, k, after-before)
			readers[format](t, path, d.Data)
			wantNames(t, filepath.Dir(path), name)
		}
	}
}

func TestExportResumesInsteadOfReadingAgain(t *testing.T) {
	w, f, d := big(t)
	path := filepath.Join(t.TempDir(), "big.vhd")
	var done int64
	crash := restore.ExportOptions{SyncBytes: 4 * mib, Progress: func(n, _ int64) { done = n },
		Hook: func(string) error {
			if done >= 20*mib {
				return errCrash
			}
			return nil
		}}
	if err := export(t, w, "latest", d.ID, path, crash); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	var first int64
	again := restore.ExportOptions{Progress: func(n, _ int64) { first = min(n, max(first, n)); f.SetHook(nil) }}
	replica := catalog.ReplicaName(w.VM, d.ID)
	f.SetHook(func(op fake.Op) fake.Fault {
		if op.Method == "ReadPages" && op.Name == replica && op.Off < 16*mib {
			t.Errorf("reads %d again", op.Off)
		}
		return fake.Fault{}
	})
	if err := export(t, w, "latest", d.ID, path, again); err != nil {
		t.Fatal(err)
	}
	wantVHD(t, path, d.Data)
}

func TestExportRefusesAnUnfinishedOther(t *testing.T) {
	w, _, d, ids := chain(t)
	path := filepath.Join(t.TempDir(), "os.vhd")
	crash := restore.ExportOptions{Hook: func(string) error { return errCrash }}
	if err := export(t, w, ids[1].String(), d.ID, path, crash); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	if err := export(t, w, ids[2].String(), d.ID, path, restore.ExportOptions{}); !errors.Is(err, restore.ErrOtherExport) {
		t.Errorf("another point: %v", err)
	}
	if err := export(t, w, ids[1].String(), d.ID, path, restore.ExportOptions{Format: restore.FormatRaw}); !errors.Is(err, restore.ErrOtherExport) {
		t.Errorf("another format: %v", err)
	}
	if err := export(t, w, ids[2].String(), d.ID, path, restore.ExportOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	wantVHD(t, path, w.Oracle[ids[2]][d.ID])
}

// What an abandoned export wrote is not seen through the holes of the next.
func TestForcedExportStartsFromNothing(t *testing.T) {
	w, _, d, _ := chain(t)
	d.Write(0, make([]byte, len(d.Data)))
	d.Write(7, []byte("x"))
	w.Close()
	path := filepath.Join(t.TempDir(), "os.raw")
	crash := restore.ExportOptions{Format: restore.FormatRaw, Hook: func(string) error { return errCrash }}
	if err := export(t, w, w.Points[0].ID().String(), d.ID, path, crash); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Format: restore.FormatRaw, Force: true}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, d.Data)
}

// Every failing operation of the target is reported, leaves no output, and the
// next try ends well.
func TestExportFailsAtEveryOperation(t *testing.T) {
	w, f, d, ids := chain(t)
	for k := 1; ; k++ {
		path := filepath.Join(t.TempDir(), "os.vhd")
		f.FailAt(k, fake.Fault{Kind: fake.Refuse})
		before := f.Injected()
		err := export(t, w, "latest", d.ID, path, restore.ExportOptions{})
		met := f.Injected() > before
		f.FailAt(0, fake.Fault{})
		if met != (err != nil) {
			t.Fatalf("operation %d: met %v, %v", k, met, err)
		}
		if !met {
			return
		}
		var at *target.Error
		if os.Remove(path) == nil && (!errors.As(err, &at) || at.Op != "Delete") { // only the removal of the pin comes later
			t.Errorf("operation %d: the output has its name in spite of %v", k, err)
		}
		if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{}); err != nil {
			t.Fatalf("after operation %d: %v", k, err)
		}
		wantVHD(t, path, w.Oracle[ids[3]][d.ID])
	}
}

func TestExportRefusesAForeignPartialAndABadCursor(t *testing.T) {
	w, _, d, ids := chain(t)
	for suffix, want := range map[string]error{restore.PartialSuffix: restore.ErrOtherExport, restore.CursorSuffix: restore.ErrCursor} {
		for _, content := range []string{"?", `{"version":2}`, `{"version":1,"sum":"x"}`} {
			path := filepath.Join(t.TempDir(), "os.vhd")
			if err := os.WriteFile(path+suffix, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{}); !errors.Is(err, want) {
				t.Errorf("%s %s: %v", suffix, content, err)
			}
			if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			wantVHD(t, path, w.Oracle[ids[3]][d.ID])
		}
	}
}

func TestExportOfOneOutputTwice(t *testing.T) {
	w, _, d, _ := chain(t)
	path := filepath.Join(t.TempDir(), "os.vhd")
	var inner error
	hook := func(point string) error {
		if point == restore.PointProven {
			inner = export(t, w, "latest", d.ID, path, restore.ExportOptions{Force: true})
		}
		return nil
	}
	if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Hook: hook}); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(inner, restore.ErrBusy) {
		t.Errorf("the second: %v", inner)
	}
}

func TestExportThatDiffersLeavesNothing(t *testing.T) {
	w, f, d, _ := chain(t)
	w.Apply()
	snapshots, _ := catalog.Snapshots(t.Context(), f, w.VM, d.ID)
	f.Rot(catalog.ReplicaName(w.VM, d.ID), snapshots[1].ID, 0)
	path := filepath.Join(t.TempDir(), "os.vhd")
	if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{}); !errors.Is(err, restore.ErrDiffers) {
		t.Fatal(err)
	}
	wantNames(t, filepath.Dir(path))
}

func TestExportFormats(t *testing.T) {
	w, _, d, _ := chain(t)
	path := filepath.Join(t.TempDir(), "os.qcow2")
	if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Format: "qcow2"}); !errors.Is(err, restore.ErrFormat) {
		t.Error(err)
	}
}

// twoDisks is a VM with names that meet in one output name.
func twoDisks(t *testing.T) *catalogtest.World {
	w := catalogtest.New(t, fake.New(fake.Options{}), "vm")
	for i, name := range []string{"os.vhdx", "os.VHD", "data/d.img"} {
		d := w.AddDisk(name, (8+i)*extent.BlockSize)
		d.Write(0, []byte(name))
		w.CompleteDisk(d)
	}
	w.Close()
	return w
}

func TestExportWholeVM(t *testing.T) {
	w := twoDisks(t)
	dir := filepath.Join(t.TempDir(), "new", "dir")
	for _, point := range []string{restore.PointCursor, restore.PointProven, restore.PointNamed, ""} {
		for k := range 3 {
			err := exportAll(t, w, dir, crashAt(point, min(k, 1))) // the disk before is behind this gap already
			if (point == "") != (err == nil) && (point == "" || !errors.Is(err, errCrash)) {
				t.Fatalf("%s: %v", point, err)
			}
			if point == restore.PointCursor {
				wantNames(t, filepath.Join(dir), firstNames(k)...)
			}
			if point == "" {
				break
			}
		}
	}
	content := w.Oracle[w.Points[0].ID()]
	wantVHD(t, filepath.Join(dir, "os.vhd"), content[w.Disks[0].ID])
	wantVHD(t, filepath.Join(dir, "os.VHD"), content[w.Disks[1].ID])
	wantVHD(t, filepath.Join(dir, "data", "d.vhd"), content[w.Disks[2].ID])
	wantNames(t, dir, "data", "os.VHD", "os.vhd")
	if err := exportAll(t, w, dir, restore.ExportOptions{}); !errors.Is(err, restore.ErrExists) {
		t.Errorf("over a finished export: %v", err)
	}
}

func TestExportWholeVMAsVHDX(t *testing.T) {
	w := twoDisks(t)
	dir := t.TempDir()
	opts := crashAt(restore.PointProven, 0)
	opts.Format = restore.FormatVHDX
	if err := exportAll(t, w, dir, opts); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	if err := exportAll(t, w, dir, restore.ExportOptions{Format: restore.FormatVHDX}); err != nil {
		t.Fatal(err)
	}
	content := w.Oracle[w.Points[0].ID()]
	for i, name := range []string{"os.vhdx", "os.VHD.vhdx", "data/d.vhdx"} {
		wantVHDX(t, filepath.Join(dir, name), content[w.Disks[i].ID])
	}
}

// What somebody did to an output while its export was interrupted is in none that is proven.
func TestExportOfAChangedPartialIsRight(t *testing.T) {
	w, _, d := big(t)
	crashes := map[string]int{restore.PointCursor: 2, restore.PointProven: 0}
	hole := int64(bytes.Index(d.Data[24*mib:], make([]byte, 64<<10))) + 24*mib
	for name, change := range map[string]func(f *os.File, size int64) error{
		"cut":     func(f *os.File, _ int64) error { return f.Truncate(3 * mib) },
		"emptied": func(f *os.File, _ int64) error { return f.Truncate(0) },
		"written": func(f *os.File, _ int64) error { _, err := f.WriteAt([]byte("somebody"), 5*mib); return err },
		"written behind": func(f *os.File, size int64) error {
			_, err := f.WriteAt([]byte("somebody"), min(hole, size))
			return err
		},
		"made longer":        func(f *os.File, size int64) error { return f.Truncate(size + 5*mib) },
		"cut behind the end": func(f *os.File, size int64) error { return f.Truncate(size - 100) },
	} {
		for format := range readers {
			for _, at := range slices.Sorted(maps.Keys(crashes)) {
				if at == restore.PointProven && name == "written behind" && format == restore.FormatVHDX {
					continue // there is no hole in it
				}
				t.Run(name+" "+format+" "+at, func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "big."+format)
					opts := crashAt(at, crashes[at])
					opts.Format, opts.SyncBytes = format, 8*mib
					if err := export(t, w, "latest", d.ID, path, opts); !errors.Is(err, errCrash) {
						t.Fatal(err)
					}
					changePartial(t, path+restore.PartialSuffix, change)
					if err := export(t, w, "latest", d.ID, path, restore.ExportOptions{Format: format}); err != nil {
						t.Fatal(err)
					}
					readers[format](t, path, d.Data)
				})
			}
		}
	}
}

func changePartial(t *testing.T, path string, change func(*os.File, int64) error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err == nil {
		err = change(f, info.Size())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func crashAt(point string, k int) restore.ExportOptions {
	return restore.ExportOptions{Hook: func(p string) error {
		if p != point {
			return nil
		}
		if k--; k < 0 {
			return errCrash
		}
		return nil
	}}
}

// firstNames is what is there when the k-th disk's data is whole: no final name.
func firstNames(k int) []string {
	names := []string{"os.vhd.partial", "os.vhd.partial.cursor"}
	if k > 0 {
		names = append([]string{"os.VHD.partial", "os.VHD.partial.cursor"}, names...)
	}
	if k > 1 {
		names = append([]string{"data"}, names...)
	}
	return names
}

func exportAll(t *testing.T, w *catalogtest.World, dir string, opts restore.ExportOptions) error {
	t.Helper()
	s, err := restore.Hold(t.Context(), w.T, w.VM, "latest", nil, restore.HoldOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return errors.Join(s.ExportAll(dir, opts), s.Close())
}

func TestOneFileIsForOneDisk(t *testing.T) {
	w := twoDisks(t)
	s, err := restore.Hold(t.Context(), w.T, w.VM, "latest", nil, restore.HoldOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Export(filepath.Join(t.TempDir(), "x"), restore.ExportOptions{}); !errors.Is(err, restore.ErrNoDisk) {
		t.Error(err)
	}
	files, err := s.Files("/d", restore.FormatRaw)
	if err != nil || !slices.Equal(files, []string{"/d/os.vhdx.raw", "/d/os.VHD.raw", "/d/data/d.img"}) {
		t.Errorf("%q, %v", files, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
