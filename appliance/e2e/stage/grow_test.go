package stage

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestGrow: qemu finds the new size and what was there, and the image without a fault.
func TestGrow(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skipf("qemu-img: %v", err)
	}
	for _, d := range []qemuDisk{
		{"two.vhd", "vpc", "subformat=dynamic,force_size=on", 5 << 20, 0},
		{"half.vhd", "vpc", "", 5 << 20, 512 << 10},
		{"one.vhdx", "vhdx", "subformat=dynamic,block_size=1M", 5 << 20, 0},
		{"plain.raw", "raw", "", 5 << 20, 0},
	} {
		path := filepath.Join(t.TempDir(), d.name)
		if err := d.create(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if err := command(t.Context(), "qemu-io", "-f", d.driver, "-c", "write -q -P 7 4M 1M", path); err != nil {
			t.Fatal(err)
		}
		const grown = 9<<20 + 512
		if err := d.resize(t.Context(), path, grown); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		if err := command(t.Context(), "qemu-io", "-f", d.driver, "-c", "read -q -P 7 4M 1M", "-c", "read -q -P 0 5M 4194816", "-c", "write -q -P 8 9M 512", path); err != nil {
			t.Error(err)
		}
		text, err := output(t.Context(), "qemu-img", "info", "--output=json", "-f", d.driver, path)
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		if err := json.Unmarshal([]byte(text), &info); err != nil || info.Size != grown || d.size != grown {
			t.Errorf("%s: qemu says %d bytes, we %d, want %d: %v", d.name, info.Size, d.size, grown, err)
		}
		if d.driver == "raw" {
			continue
		}
		if err := d.resize(t.Context(), path, 1<<40); !errors.Is(err, errNoRoom) || d.size != grown {
			t.Errorf("%s: room for everything: %v", d.name, err)
		}
	}
}

// TestEqual: a difference of one byte is told, and one of the size, which qemu-img takes for none.
func TestEqual(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skipf("qemu-img: %v", err)
	}
	dir := t.TempDir()
	d := qemuDisk{"one.vhdx", "vhdx", "subformat=dynamic,block_size=1M", 3 << 20, 0}
	path, raw := filepath.Join(dir, "image"), filepath.Join(dir, "raw")
	if err := errors.Join(d.create(t.Context(), path), command(t.Context(), "qemu-io", "-f", d.driver, "-c", "write -q -P 7 1M 4k", path)); err != nil {
		t.Fatal(err)
	}
	if err := d.raw(t.Context(), path, raw); err != nil {
		t.Fatal(err)
	}
	if err := d.equal(t.Context(), path, dir, raw); err != nil {
		t.Error(err)
	}
	if err := command(t.Context(), "qemu-img", "resize", "-q", "-f", "raw", raw, "+1M"); err != nil {
		t.Fatal(err)
	}
	if err := d.equal(t.Context(), path, dir, raw); err == nil {
		t.Error("another size")
	}
	if err := command(t.Context(), "qemu-io", "-f", "raw", "-c", "write -q -P 8 1M 512", raw); err != nil {
		t.Fatal(err)
	}
	if err := d.equal(t.Context(), path, dir, raw); err == nil {
		t.Error("another byte")
	}
}
