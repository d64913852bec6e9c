package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// The chart: a guest writes for chartSpan; the process that serves is killed at chartKill and replaced by a later release at
// chartUpgrade.
const (
	chartSpan    = 12 * time.Second
	chartKill    = 4 * time.Second
	chartUpgrade = 8 * time.Second
	chartPause   = 2 * time.Millisecond // between two writes
)

// sample is one write: when it was sent, and how long its answer took.
type sample struct{ at, took time.Duration }

// mark is something that happened meanwhile.
type mark struct {
	at   time.Duration
	what string
}

// drawLatency measures a guest's write latency across a kill and an upgrade and draws it into a file.
func (b *bench) drawLatency(file string) (err error) {
	next, err := rig.BuildNext(b.ctx, b.dir)
	if err != nil {
		return err
	}
	s, g, err := b.keptStore("chart", imagesPerVM)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close(), s.end()) }()
	began := time.Now()
	var samples []sample
	wrote := make(chan error, 1)
	go func() { wrote <- g.during(began, &samples) }()
	marks, err := b.disturb(s, began, next)
	if err := errors.Join(err, <-wrote); err != nil {
		return err
	}
	for _, m := range marks {
		b.progress("%s at %v: the longest write took %v", m.what, m.at.Round(time.Millisecond), worstAfter(samples, m.at).Round(time.Millisecond))
	}
	host, _ := os.Hostname()
	b.progress("drawn on %s into %s", host, file)
	return os.WriteFile(file, latencySVG(samples, marks, chartSpan), 0o644)
}

// during writes from the beginning on until the span is over, and takes the time of each write.
func (w *writer) during(began time.Time, samples *[]sample) error {
	tick := time.NewTicker(chartPause)
	defer tick.Stop()
	for sent := time.Since(began); sent < chartSpan; sent = time.Since(began) {
		if err := w.write(); err != nil {
			return fmt.Errorf("a guest's write after %v: %w", sent, err)
		}
		*samples = append(*samples, sample{sent, time.Since(began) - sent})
		<-tick.C
	}
	return nil
}

// disturb kills, and upgrades.
func (b *bench) disturb(s *store, began time.Time, next string) ([]mark, error) {
	if err := b.pause(chartKill - time.Since(began)); err != nil {
		return nil, err
	}
	marks := []mark{{time.Since(began), "SIGKILL"}}
	pid := s.Pid()
	if err := errors.Join(s.Signal(unix.SIGKILL), s.Followed(b.ctx, pid)); err != nil {
		return nil, err
	}
	if err := b.pause(chartUpgrade - time.Since(began)); err != nil {
		return nil, err
	}
	pid = s.Pid()
	marks = append(marks, mark{time.Since(began), "upgrade"})
	if err := errors.Join(s.Install(next), s.Signal(unix.SIGTERM), s.Followed(b.ctx, pid)); err != nil {
		return nil, err
	}
	if !s.Serves() {
		return nil, errors.New("the later release does not serve")
	}
	return marks, nil
}

// worstAfter is the longest write that was under way at a moment or was sent in the second after it.
func worstAfter(samples []sample, at time.Duration) time.Duration {
	var worst time.Duration
	for _, s := range samples {
		if s.at+s.took >= at && s.at < at+time.Second {
			worst = max(worst, s.took)
		}
	}
	return worst
}

// chartFile makes the path absolute before the program works elsewhere.
func chartFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}
