package guest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sector0 is a boot sector that says text on the second serial port and halts.
func sector0(text string) []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xfc,             // cld
		0xba, 0xf8, 0x02, // mov dx, 2f8h
		0xbe, 0x16, 0x7c, // mov si, 7c16h: behind the code
		0xac,       // next: lodsb
		0x08, 0xc0, // or al, al
		0x74, 0x03, // jz halt
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	p := append(append(code, text...), 0)
	p = append(p, make([]byte, 510-len(p))...)
	return append(p, 0x55, 0xaa)
}

func needQemu(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64: make tools installs it")
	}
}

// The firmware boots the disk itself, in every format, and what the guest says is heard line by line. No agent says hello
// here: the start ends with its context, and nothing of the machine is left.
func TestDriveBootsItsDisk(t *testing.T) {
	needQemu(t)
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	if err := errors.Join(os.WriteFile(raw, sector0("1\n2\r\nrest"), 0o600), os.Truncate(raw, 8<<20)); err != nil {
		t.Fatal(err)
	}
	vhd := filepath.Join(dir, "disk.vhd")
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on", raw, vhd).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for format, file := range map[string]string{"raw": raw, "vpc": vhd} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		said := make(chan string, 10)
		d := Drive{Dir: filepath.Join(dir, format), File: file, Format: format, Memory: 64, Heard: func(line string) {
			if said <- line; line == "2" {
				cancel()
			}
		}}
		m, err := d.Start(ctx)
		if !errors.Is(err, context.Canceled) || m.qemu != nil {
			t.Fatalf("%s: %v", format, err)
		}
		for _, want := range []string{"1", "2"} {
			if got := <-said; got != want {
				t.Fatalf("%s: said %q, want %q", format, got, want)
			}
		}
		cancel()
	}
}

// A disk that qemu does not take is said at once, with where its words are.
func TestDriveThatDoesNotStart(t *testing.T) {
	needQemu(t)
	d := Drive{Dir: t.TempDir(), File: filepath.Join(t.TempDir(), "absent"), Format: "raw"}
	if _, err := d.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "qemu.log") {
		t.Fatal(err)
	}
}

// A Bootable that cannot be made names the log.
func TestBootableNeedsItsImage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	module, err := Module()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := Bootable{Image: Image{Root: filepath.Join(dir, "root.img")}, Size: 64 << 20}
	if err := b.Make(t.Context(), module, filepath.Join(dir, "disk.raw")); err == nil || !strings.Contains(err.Error(), "debootstrap.log") {
		t.Fatal(err)
	}
	if out, err := exec.Command("losetup", "-j", filepath.Join(dir, "disk.raw")).Output(); err != nil || len(out) > 0 {
		t.Fatalf("%v, %s is left", err, out)
	}
}
