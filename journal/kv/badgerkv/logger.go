package badgerkv

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"
)

// logger passes Badger's messages on; its information is our debugging. On a disk that
// takes nothing Badger says the same once a second for ever: what it repeats is said once
// in sayEvery, with how often it came.
type logger struct {
	log  *slog.Logger
	said *said
}

const (
	// sayEvery is how often one message is said that comes again and again.
	sayEvery = 10 * time.Minute
	// mostSaid bounds what is remembered of messages.
	mostSaid = 100
)

// said remembers which messages were said lately, and when. It outlives the database,
// which is opened anew after each failure.
type said struct {
	now func() time.Time
	mu  struct {
		sync.Mutex // never held over I/O
		last       map[string]*saying
	}
}

// saying is one message: when it was last said, and how often it was kept back since.
type saying struct {
	at   time.Time
	kept int
}

func newSaid(now func() time.Time) *said {
	s := &said{now: now}
	s.mu.last = map[string]*saying{}
	return s
}

// again tells whether to keep a message back, and if not, how many like it were.
// Messages that differ in numbers only are one.
func (s *said) again(text string) (keep bool, kept int) {
	text = strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, text)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	have := s.mu.last[text]
	if have != nil && now.Sub(have.at) < sayEvery {
		have.kept++
		return true, 0
	}
	if have != nil {
		kept = have.kept
	} else if len(s.mu.last) >= mostSaid {
		clear(s.mu.last)
	}
	s.mu.last[text] = &saying{at: now}
	return false, kept
}

func (l logger) Errorf(f string, v ...any)   { l.say(slog.LevelError, f, v) }
func (l logger) Warningf(f string, v ...any) { l.say(slog.LevelWarn, f, v) }
func (l logger) Infof(f string, v ...any)    { l.log.Debug(line(f, v)) }
func (l logger) Debugf(f string, v ...any)   { l.log.Debug(line(f, v)) }

func (l logger) say(level slog.Level, f string, v []any) {
	text := line(f, v)
	switch keep, kept := l.said.again(text); {
	case keep:
		l.log.Debug(text)
	case kept > 0:
		l.log.Log(context.Background(), level, text, "repeated", kept)
	default:
		l.log.Log(context.Background(), level, text)
	}
}

func line(f string, v []any) string { return "badger: " + strings.TrimSpace(fmt.Sprintf(f, v...)) }
