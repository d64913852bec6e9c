package systemd

import (
	"context"
	"io"
	"log/slog"
	"os"
)

// priorities are those of sd-daemon(3), in the order of the levels.
var priorities = []struct {
	from   slog.Level
	prefix string
}{{slog.LevelError, "<3>"}, {slog.LevelWarn, "<4>"}, {slog.LevelInfo, "<6>"}, {slog.LevelDebug - 100, "<7>"}}

// journal writes a line a record as the manager's journal likes it: with a priority, and without the time, which the
// journal has itself.
type journal struct{ byLevel []slog.Handler }

// LogHandler returns the handler for a log on w, as text: for the journal if standard error is connected to it
// (JOURNAL_STREAM, systemd.exec(5)), else with times.
func LogHandler(w io.Writer, level slog.Leveler) slog.Handler {
	if os.Getenv("JOURNAL_STREAM") == "" {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	}
	var j journal
	for _, p := range priorities {
		j.byLevel = append(j.byLevel, slog.NewTextHandler(prefixed{w, p.prefix}, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime}))
	}
	return j
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// prefixed writes lines with something before them, each in one write. A text handler makes one write a line and
// quotes line breaks within it.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// Enabled implements slog.Handler.
func (j journal) Enabled(ctx context.Context, level slog.Level) bool {
	return j.byLevel[0].Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (j journal) Handle(ctx context.Context, r slog.Record) error {
	for i, p := range priorities {
		if r.Level >= p.from {
			return j.byLevel[i].Handle(ctx, r)
		}
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (j journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return j.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (j journal) WithGroup(name string) slog.Handler {
	return j.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (j journal) each(f func(slog.Handler) slog.Handler) slog.Handler {
	var out journal
	for _, h := range j.byLevel {
		out.byLevel = append(out.byLevel, f(h))
	}
	return out
}
