package cli

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// ticker is a meter with a clock that the test moves.
type ticker struct {
	*meter
	out bytes.Buffer
	t   time.Time
}

func newTicker(terminal bool) *ticker {
	k := &ticker{t: now}
	k.meter = newMeter(Deps{Stderr: &k.out, Terminal: terminal, Now: func() time.Time { return k.t }})
	return k
}

func (k *ticker) at(d time.Duration, p control.Progress) {
	k.t = now.Add(d)
	k.update(p)
}

func exporting(done int64) control.Progress {
	return control.Progress{Stage: "exporting", Item: "os.vhd", Done: done << 20, Total: 1000 << 20}
}

func TestPlainProgressIsALineEveryFiveSeconds(t *testing.T) {
	k := newTicker(false)
	for i := range int64(120) {
		k.at(time.Duration(i)*100*time.Millisecond, exporting(i))
	}
	k.at(12*time.Second, exporting(1000))
	k.close()
	want := "exporting os.vhd    0 %  0 B of 1000 MiB\n" +
		"exporting os.vhd    5 %  50 MiB of 1000 MiB  10 MiB/s  1 min 35 s left\n" +
		"exporting os.vhd   10 %  100 MiB of 1000 MiB  10 MiB/s  1 min 30 s left\n" +
		"exporting os.vhd  100 %  1000 MiB of 1000 MiB  83 MiB/s\n"
	if got := k.out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestStagesAreShownAtOnce(t *testing.T) {
	k := newTicker(false)
	k.at(0, control.Progress{Stage: "sealing"})
	k.at(1, control.Progress{Stage: "sealing"})
	k.at(2, control.Progress{Stage: "shipping", Item: "a.vhd"})
	k.at(3, control.Progress{Stage: "shipping", Item: "b.vhd", Done: 2048})
	want := "sealing\nshipping a.vhd\nshipping b.vhd  2.0 KiB\n"
	if got := k.out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestTerminalProgressIsDrawnOverItself(t *testing.T) {
	k := newTicker(true)
	k.at(0, exporting(0))
	k.at(50*time.Millisecond, exporting(400)) // too soon
	k.at(10*time.Second, exporting(500))
	k.at(11*time.Second, control.Progress{Stage: "proving"})
	k.close()
	k.close()
	lines := strings.Split(k.out.String(), "\n")
	if len(lines) != 3 || lines[2] != "" {
		t.Fatalf("%q", lines)
	}
	frames := strings.Split(lines[0], "\r")
	want := []string{"",
		"exporting os.vhd  [" + strings.Repeat(".", 30) + "]    0 %  0 B of 1000 MiB",
		"exporting os.vhd  [" + strings.Repeat("#", 15) + strings.Repeat(".", 15) + "]   50 %  500 MiB of 1000 MiB  50 MiB/s  10 s left"}
	if len(frames) != len(want) {
		t.Fatalf("%q", frames)
	}
	for i := range want {
		if frames[i] != want[i] {
			t.Errorf("frame %d: %q, want %q", i, frames[i], want[i])
		}
	}
	if lines[1] != "\rproving" {
		t.Errorf("%q", lines[1])
	}
}

// A shorter line must not leave the end of the longer one before it.
func TestShorterLineClearsTheLonger(t *testing.T) {
	k := newTicker(true)
	k.at(0, control.Progress{Stage: "waiting", Done: 1023 << 10})
	k.at(time.Second, control.Progress{Stage: "waiting", Done: 1})
	if got, want := k.out.String(), "\rwaiting  1023 KiB\rwaiting  1 B     "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Numbers that make no sense must not break the output of a command that is otherwise fine.
func TestOddProgress(t *testing.T) {
	k := newTicker(true)
	k.at(0, control.Progress{Stage: "x", Done: -5, Total: 10})
	k.at(time.Second, control.Progress{Stage: "x", Done: 50, Total: 10})
	k.at(2*time.Second, control.Progress{Stage: "x", Done: math.MaxInt64, Total: math.MaxInt64})
	k.at(3*time.Second, control.Progress{})
	if !strings.Contains(k.out.String(), "100 %") {
		t.Errorf("%q", k.out.String())
	}
}

func TestPercentSaysHundredOnlyWhenAllIsDone(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		want        int
	}{{0, 10, 0}, {999, 1000, 99}, {1000, 1000, 100}, {math.MaxInt64 - 2048, math.MaxInt64, 99}, {0, 0, 100}, {5, 3, 100}} {
		if got := percent(c.done, c.total); got != c.want {
			t.Errorf("percent(%d, %d) = %d, want %d", c.done, c.total, got, c.want)
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 10 << 10: "10 KiB", 1 << 20: "1.0 MiB",
		1<<30 + 512: "1.0 GiB", 24 << 30: "24 GiB", 5 << 40: "5.0 TiB", math.MaxInt64: "8.0 EiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Second: "0.0 s", 3200 * time.Millisecond: "3.2 s", 42 * time.Second: "42 s",
		95 * time.Second: "1 min 35 s", 90 * time.Minute: "1 h 30 min", 50 * time.Hour: "2 d 2 h"} {
		if got := age(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestParsePoint(t *testing.T) {
	at := time.Date(2026, 3, 1, 8, 30, 0, 0, time.UTC)
	for text, want := range map[string]PointSpec{
		"latest": {}, "1-12": {Generation: 1, Epoch: 12}, "2026-03-01T08:30:00Z": {At: at}, "2026-03-01T08:30:00": {At: at},
		"2026-03-01 08:30": {At: at}, "2026-03-01T08:30": {At: at},
	} {
		if got, err := ParsePoint(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	if got, err := ParsePoint("2026-03-01T09:30:00+01:00"); err != nil || !got.At.Equal(at) || got.String() != "2026-03-01T08:30:00Z" {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "1", "0-1", "1-0", "-1-2", "1-2-3", "Latest", "01-2", "99999999999999999999-1", "2026-03-01"} {
		if got, err := ParsePoint(text); err == nil || exitOf(err) != control.ExitUsage {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for want, p := range map[string]PointSpec{"latest": {}, "1-12": {Generation: 1, Epoch: 12}} {
		if p.String() != want || p.Latest() != (want == "latest") {
			t.Errorf("%+v is %s", p, p)
		}
	}
}

func TestSplitDisk(t *testing.T) {
	for text, want := range map[string][2]string{"web01": {"web01", ""}, "web01/os.vhd": {"web01", "os.vhd"}, "a/b/c.img": {"a", "b/c.img"}} {
		if vm, disk, err := splitDisk(text); err != nil || [2]string{vm, disk} != want {
			t.Errorf("%s: %q %q %v", text, vm, disk, err)
		}
	}
	for _, text := range []string{"", "/", "/x", "web01/"} {
		if vm, disk, err := splitDisk(text); err == nil {
			t.Errorf("%q: %q %q", text, vm, disk)
		}
	}
}

func TestExportFormatFollowsTheFilesName(t *testing.T) {
	for _, c := range []struct{ disk, output, format, want string }{
		{"a.vhd", "x.vhd", "", "vhd"}, {"a.vhd", "x.RAW", "", "raw"}, {"a.vhd", "x.img", "", "raw"}, {"a.vhd", "x", "", "vhd"},
		{"a.vhd", "x.VHDX", "", "vhdx"}, {"a.vhd", "x.vhd", "vhdx", "vhdx"}, {"", "dir.vhdx", "", "vhd"},
		{"a.vhd", "x.img", "vhd", "vhd"}, {"", "dir.img", "", "vhd"}, {"", "dir", "raw", "raw"},
	} {
		req := ExportRequest{Disk: c.disk, Output: c.output, Format: c.format}
		if err := checkExport(&req); err != nil || req.Format != c.want {
			t.Errorf("%+v: %q, %v", c, req.Format, err)
		}
	}
}
