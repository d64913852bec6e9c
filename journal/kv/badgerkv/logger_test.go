package badgerkv

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// A state disk that takes nothing has Badger say the same for ever: the log has it once in
// ten minutes, at its level, with how often it came, and all of it for who debugs.
func TestRepeatedMessagesAreSaidOnceInAWhile(t *testing.T) {
	var out bytes.Buffer
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	var l badger.Logger = logger{slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})), newSaid(func() time.Time { return now })}
	for i := range 1500 {
		l.Errorf("error flushing memtable to disk: %v, retrying", errors.New("open 0000"+string(rune('0'+i%10))+".sst: read-only file system"))
		if i == 700 {
			l.Warningf("something else")
		}
		now = now.Add(time.Second)
	}
	text := out.String()
	if n := strings.Count(text, "flushing memtable"); n != 3 {
		t.Errorf("said %d times in 25 minutes: %s", n, text)
	}
	if !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "repeated=599") || strings.Count(text, "something else") != 1 {
		t.Error(text)
	}
	l.Errorf("error flushing memtable to disk: %v, retrying", errors.New("no space left on device"))
	if !strings.Contains(out.String(), "no space left") {
		t.Error("another cause is kept back")
	}
}

// What differs every time does not fill the memory.
func TestSaidIsBounded(t *testing.T) {
	s := newSaid(time.Now)
	for i := range 1000 {
		s.again(strings.Repeat("x", i))
	}
	if n := len(s.mu.last); n > mostSaid {
		t.Errorf("%d messages are remembered", n)
	}
}
