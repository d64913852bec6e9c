package guest

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// disk serves a file of zeros.
func disk(t *testing.T, sectors int64) (d *Disk, file, socket string) {
	t.Helper()
	dir := t.TempDir()
	file, socket = filepath.Join(dir, "disk"), filepath.Join(dir, "sock")
	if err := os.WriteFile(file, make([]byte, sectors*sector), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := ServeDisk(file, socket)
	if err != nil {
		t.Fatal(err)
	}
	return d, file, socket
}

// client runs qemu-io on the served disk; its commands are one life of a machine that never flushes by itself.
func client(t *testing.T, socket string, commands ...string) {
	t.Helper()
	path, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("no qemu-io here: run `make tools`")
	}
	args := []string{"-f", "raw", "-t", "writeback"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	cmd := exec.Command(path, append(args, "nbd+unix:///?socket="+socket)...)
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// sectors says of each sector which byte it is full of.
func sectors(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for ; len(data) > 0; data = data[sector:] {
		if n := bytes.Count(data[:sector], data[:1]); n != sector {
			t.Fatalf("a sector has %d bytes %#x and others", n, data[0])
		}
		out = append(out, data[0])
	}
	return out
}

// abort makes qemu-io end as a power cut ends a machine.
const abort = "abort"

func crash(t *testing.T, socket string, commands ...string) {
	t.Helper()
	path, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("no qemu-io here: run `make tools`")
	}
	args := []string{"-f", "raw", "-t", "writeback"}
	for _, c := range append(commands, abort) {
		args = append(args, "-c", c)
	}
	if err := exec.Command(path, append(args, "nbd+unix:///?socket="+socket)...).Run(); err == nil {
		t.Fatal("qemu-io did not abort")
	}
}

// What was flushed is there, and of the rest nothing, some or all, as the cut has it.
func TestCutForgetsWhatWasNotFlushed(t *testing.T) {
	for keep, wantLost := range map[float64]func(int) bool{
		0: func(n int) bool { return n == 8 }, 0.5: func(n int) bool { return n > 0 && n < 8 }, 1: func(n int) bool { return n == 0 },
	} {
		d, file, socket := disk(t, 16)
		crash(t, socket, "write -P 1 0 32k", "flush", "write -P 2 0 4k", "write -P 3 32k 28k")
		lost, err := d.Cut(rand.New(rand.NewPCG(1, 2)), keep)
		if err != nil || !wantLost(lost) {
			t.Errorf("keep %v: %d lost, %v", keep, lost, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		got := sectors(t, file)
		changed := 0
		for i, b := range got {
			was, is := byte(1), byte(1)
			switch {
			case i == 0:
				is = 2
			case i >= 8 && i < 15:
				was, is = 0, 3
			case i == 15:
				was, is = 0, 0
			}
			if b != was && b != is {
				t.Errorf("keep %v: sector %d holds %d", keep, i, b)
			}
			if was != is && b == is {
				changed++
			}
		}
		if changed != 8-lost {
			t.Errorf("keep %v: %d lost, %d are there", keep, lost, changed)
		}
	}
}

// The machine reads what it wrote, flushed or not, also in parts of a sector; a clean end loses nothing.
func TestDiskReadsThroughItsCache(t *testing.T) {
	d, file, socket := disk(t, 16)
	client(t, socket, "write -P 1 0 64k", "flush", "write -P 2 512 512", "read -P 1 0 512", "read -P 2 512 512", "read -P 1 1024 3072",
		"write -P 3 4k 8k", "read -P 3 4k 8k", "read -P 1 12k 52k", "write -P 1 512 512")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := sectors(t, file), append([]byte{1, 3, 3}, bytes.Repeat([]byte{1}, 13)...); !bytes.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A machine may lose its power with an answer unread, which resets the connection: that is no fault of the disk.
func TestCutInTheMiddleOfAnAnswer(t *testing.T) {
	d, _, socket := disk(t, 16)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	export := binary.BigEndian.AppendUint64([]byte{0, 0, 0, 0}, nbdOption)
	export = append(export, 0, 0, 0, optExport, 0, 0, 0, 0)
	read := append(binary.BigEndian.AppendUint32(nil, nbdRequest), 0, 0, 0, cmdRead)
	read = append(read, make([]byte, 8+8)...)
	read = append(read, 0, 0, sector>>8, 0)
	if _, err := conn.Write(append(export, read...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 18+10+1)); err != nil { // greeting, export, and the first byte of the answer
		t.Fatal(err)
	}
	conn.Close()
	if _, err := d.Cut(rand.New(rand.NewPCG(1, 2)), 0); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestDiskOfHalfASectorIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ServeDisk(file, file+".sock"); err == nil {
		t.Error("served")
	}
}
