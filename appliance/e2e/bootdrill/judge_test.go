package main

import (
	"archive/tar"
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		out      string
		promised int
		good     bool
	}{
		{"ok\n100|100|0\n", 100, true},
		{"ok\n100|100|0\n", 0, true},
		{"ok\n0|0|0\n", 0, true},
		{"ok\n100|100|0\n", 101, false},
		{"ok\n99|100|0\n", 90, false},
		{"ok\n100|100|1\n", 90, false},
		{"ok\n", 0, false},
		{"", 0, false},
		{"*** in database main ***\nTree 2 page 3: btreeInitPage() returns error code 11\n100|100|0\n", 90, false},
	} {
		n, err := judge(c.out, c.promised)
		if (err == nil) != c.good {
			t.Errorf("%q with %d promised: %v", c.out, c.promised, err)
		}
		if c.good && c.promised > 0 && n != 100 {
			t.Errorf("%q: newest %d", c.out, n)
		}
	}
}

// The kernels' own words, of Linux 6.1.
func TestTrouble(t *testing.T) {
	sound := `[    1.0] Write protecting the kernel read-only data: 18432k
[   12.1] EXT4-fs (vda1): INFO: recovery required on readonly filesystem
[   12.1] EXT4-fs (vda1): write access will be enabled during recovery
[   12.5] EXT4-fs (vda1): recovery complete
[   12.6] EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.
`
	if err := noTrouble(sound); err != nil {
		t.Errorf("a sound guest: %v", err)
	}
	for _, line := range []string{
		"[  100.0] I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2",
		"[  100.0] Buffer I/O error on dev vda1, logical block 0, lost sync page write",
		"[  100.0] EXT4-fs error (device vda1): ext4_journal_check_start:83: comm jbd2: Detected aborted journal",
		"[  100.0] EXT4-fs (vda1): Remounting filesystem read-only",
		"[  100.0] EXT4-fs warning (device vda1): ext4_end_bio:343: I/O error 10 writing to inode 131",
		"[  242.0] INFO: task jbd2/vda1-8:180 blocked for more than 120 seconds.",
		"[  100.0] Aborting journal on device vda1-8.",
	} {
		if noTrouble(sound+line+"\n") == nil {
			t.Errorf("%q is no trouble", line)
		}
	}
	if err := noTrouble(strings.Repeat("I/O error, dev vda\n", 1000)); err == nil || len(err.Error()) > 1000 {
		t.Errorf("a thousand lines: %v", err)
	}
}

// What is written for the guest's sha256sum is what the machine's own takes, of the parts and of nothing else.
func TestChecksums(t *testing.T) {
	dir := t.TempDir()
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	for _, f := range []struct{ name, text string }{
		{"linux-source-6.1/fs/inode.c", "a"}, {"linux-source-6.1/fs/ext4/inode.c", ""}, {"linux-source-6.1/fsx/no.c", "x"},
		{"linux-source-6.1/fs", "a file"}, {"linux-source-6.1/README", "x"}, {"other/fs/no.c", "x"},
	} {
		if err := out.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Size: int64(len(f.text)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.WriteHeader(&tar.Header{Name: "linux-source-6.1/fs/link", Typeflag: tar.TypeSymlink, Linkname: "inode.c"}); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	packed := archive.Bytes()
	text, n, err := checksums(tar.NewReader(bytes.NewReader(packed)))
	if err != nil || n != 2 {
		t.Fatalf("%d files, %v:\n%s", n, err, text)
	}
	unpack := exec.Command("tar", "-C", dir, "-x", "linux-source-6.1/fs/inode.c", "linux-source-6.1/fs/ext4/inode.c")
	unpack.Stdin = bytes.NewReader(packed)
	if text, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	check := exec.Command("sha256sum", "--quiet", "-c", "-")
	check.Dir, check.Stdin = dir, strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, _, err := checksums(tar.NewReader(bytes.NewReader(packed[:512]))); err == nil {
		t.Fatal("half an archive is whole")
	}
}
