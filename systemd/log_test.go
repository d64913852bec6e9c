package systemd

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestJournalLinesHavePrioritiesAndNoTime(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "8:1234")
	var out bytes.Buffer
	log := slog.New(LogHandler(&out, slog.LevelInfo)).With("vm", "web01")
	log.Debug("unseen")
	log.Info("serving", "stores", 1)
	log.Warn("stage failed", "cause", "two\nlines")
	log.WithGroup("disk").Error("bad", "name", "os.vhd", "time", "kept")
	want := "<6>level=INFO msg=serving vm=web01 stores=1\n" +
		"<4>level=WARN msg=\"stage failed\" vm=web01 cause=\"two\\nlines\"\n" +
		"<3>level=ERROR msg=bad vm=web01 disk.name=os.vhd disk.time=kept\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestLogOutsideTheJournalHasTimes(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	var out bytes.Buffer
	slog.New(LogHandler(&out, slog.LevelDebug)).Debug("seen")
	if text := out.String(); !strings.HasPrefix(text, "time=") || !strings.Contains(text, "level=DEBUG msg=seen") {
		t.Errorf("%q", text)
	}
}
