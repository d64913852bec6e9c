package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

func TestParseTraffic(t *testing.T) {
	got, err := parseTraffic("  1 2 3 4 5 6 2048 8 9 10 11 12 13 14 15 7 17\n")
	if err != nil || got != (traffic{written: 1 << 20, flushes: 7}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "1 2 3 4 5 6 7 8 9 10 11", strings.Repeat("x ", 17)} {
		if got, err := parseTraffic(text); err == nil {
			t.Errorf("%q: %+v and no error", text, got)
		}
	}
}

// The kernel's own file must have the columns that are read.
func TestParseTrafficOfThisKernel(t *testing.T) {
	files, _ := filepath.Glob("/sys/class/block/*/stat")
	if len(files) == 0 {
		t.Skip("no block device in sysfs")
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseTraffic(string(data)); err != nil {
		t.Error(err)
	}
}

const logText = `--- 2026-01-02T03:04:05.000000001Z start [serve]
time=2026-01-02T03:04:05.100Z level=INFO msg="store mounted" store=main
time=2026-01-02T03:04:05.200Z level=INFO msg="compared with the checksum table" vm=bench
not a line of ours
time=2026-01-02T03:04:09.750Z level=INFO msg="compared with the checksum table" vm=bench
`

func TestLoggedAfter(t *testing.T) {
	dir := t.TempDir()
	s := &store{Rig: &rig.Rig{Options: rig.Options{Dir: dir}}}
	if err := os.WriteFile(s.LogFile(), []byte(logText), 0o600); err != nil {
		t.Fatal(err)
	}
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		after time.Duration
		text  string
		want  time.Duration
	}{{0, comparedLine, 200 * time.Millisecond}, {time.Second, comparedLine, 3750 * time.Millisecond}, {0, `msg="store mounted"`, 100 * time.Millisecond}} {
		if got, err := s.loggedAfter(begun.Add(c.after), c.text); err != nil || got != c.want {
			t.Errorf("%s after %v: %v, %v", c.text, c.after, got, err)
		}
	}
	if got, err := s.loggedAfter(begun.Add(time.Minute), comparedLine); err == nil {
		t.Errorf("a line of the past counts: %v", got)
	}
}

func TestConfigure(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "vhdrelay")
	if err := os.WriteFile(binary, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	b, which, err := configure([]string{"-binary", binary, "-short", "-run", "^fio$"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if b.rounds != 3 || b.turn != time.Second || b.size(400) != 100 || !which.MatchString("fio") || which.MatchString("fios") {
		t.Errorf("%+v %v", b, which)
	}
	for _, args := range [][]string{{"-binary", "none"}, {"-binary", binary, "-rounds", "0"}, {"-binary", binary, "-run", "("}, {"-nonsense"}} {
		if _, _, err := configure(args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

// Every measurement has a name of its own, and the usage names them all.
func TestMeasurementsAreNamed(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range measurements() {
		if m.name == "" || m.run == nil || seen[m.name] {
			t.Errorf("measurement %q", m.name)
		}
		seen[m.name] = true
	}
}

func TestDescribe(t *testing.T) {
	var out strings.Builder
	describe(&out, t.TempDir())
	if !strings.Contains(out.String(), "of memory, Linux") || strings.Contains(out.String(), "unknown size") {
		t.Error(out.String())
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("other : 1\nkey\t: a value \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := field(file, "key"); got != "a value" {
		t.Errorf("field: %q", got)
	}
	if field(file, "none") != "unknown" || field(file+"x", "key") != "unknown" {
		t.Error("a missing field is made up")
	}
}
