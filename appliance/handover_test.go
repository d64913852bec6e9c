package appliance

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/config"
)

// One of the two descriptors of a mount is of no use, and the device alone would keep a mount that nobody serves: it is closed,
// and the log says so.
func TestHalfOfAMountIsLetGo(t *testing.T) {
	for _, suffix := range []string{keptDevice, keptState} {
		var log bytes.Buffer
		a := compose(&config.Config{}, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		s := newStore(a, config.Store{Name: "a b"})
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		a.stored = map[string]*os.File{s.keptName() + suffix: r}
		if c := s.kept(); c != nil || len(a.stored) != 0 {
			t.Errorf("%s: %v, %v left", suffix, c, a.stored)
		}
		if err := r.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s is open still", suffix)
		}
		if !bytes.Contains(log.Bytes(), []byte("code=mount-damaged")) {
			t.Errorf("%s: nothing is said: %s", suffix, log.Bytes())
		}
	}
}

func TestWholeMountIsTaken(t *testing.T) {
	a := compose(&config.Config{}, Options{Log: slog.New(slog.DiscardHandler)})
	s := newStore(a, config.Store{Name: "main"})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a.stored = map[string]*os.File{"main" + keptDevice: r, "main" + keptState: w, "other" + keptState: nil}
	c := s.kept()
	if c == nil || c.Device != r || c.State != w || len(a.stored) != 1 {
		t.Fatalf("%+v, %v", c, a.stored)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if s.kept() != nil {
		t.Error("taken twice")
	}
}
