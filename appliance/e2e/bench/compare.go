package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// compareSize is a disk that is compared: long enough to read that a start and a tick do not count.
const compareSize = 2 << 30

// comparedLine begins the appliance's line about a finished comparison.
const comparedLine = `msg="compared with the checksum table"`

// scan compares a resync, asked for by the operator, with reading the file; its time is from the command to the line
// in the log that says what was compared.
func (b *bench) scan() (rows []row, err error) {
	size := b.size(compareSize)
	s, err := b.filled("scan", size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	for _, cold := range []bool{false, true} {
		var took, read []float64
		for range min(b.rounds, 3) {
			r, err := b.timeRead(s.backing, cold)
			if err != nil {
				return rows, err
			}
			c, err := b.timeResync(s, cold)
			if err != nil {
				return rows, err
			}
			took, read = append(took, float64(size)/c.Seconds()), append(read, float64(size)/r.Seconds())
		}
		rows = append(rows, ratioRow("resync scan, "+temperature(cold), "cat of the file", over(took, read), atLeast(0.8),
			fmt.Sprintf("%s, cat %s", rate(median(took), true), rate(median(read), true))))
	}
	return rows, nil
}

// crash kills the appliance with all regions of the disk active and compares the time from the restart's mount until
// nothing is suspect any more with reading those regions once.
func (b *bench) crash() (rows []row, err error) {
	size := b.size(compareSize)
	s, err := b.filled("crash", size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	for _, cold := range []bool{false, true} {
		var took, read, starts []float64
		var suspect int64
		for range min(b.rounds, 3) {
			if err := b.fill(s.mounted, 0, size); err != nil {
				return rows, err
			}
			r, err := b.timeRead(s.backing, cold)
			if err != nil {
				return rows, err
			}
			c, start, n, err := b.timeRecovery(s, cold)
			if err != nil {
				return rows, err
			}
			took, read, starts, suspect = append(took, c.Seconds()), append(read, r.Seconds()), append(starts, start.Seconds()), n
		}
		rows = append(rows, ratioRow("crash recovery, "+temperature(cold), "one read of the active regions", over(took, read), atMost(1.5),
			fmt.Sprintf("%v for %s, read in %v; mounted %v after the start", seconds(median(took)), mebibytes(suspect), seconds(median(read)), seconds(median(starts)))))
	}
	return rows, nil
}

func temperature(cold bool) string {
	if cold {
		return "cold"
	}
	return "warm"
}

// prepare makes an appliance over an image without starting it.
func (b *bench) prepare(name string, size int64, opts rig.Options) (*store, error) {
	s, err := b.configureStore(name, opts, "")
	if err != nil {
		return nil, err
	}
	return s, makeImage(s.backing, size)
}

// filled starts an appliance with a disk full of random bytes, initially replicated.
func (b *bench) filled(name string, size int64) (*store, error) {
	s, err := b.prepare(name, size, rig.Options{SpoolLimit: 4 * size})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.fill(s.backing, 0, size), s.Start(b.ctx)); err != nil {
		return nil, err
	}
	if _, err := s.Sync(b.ctx, vmName); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// heat puts the file's pages where they are wanted: all of them in the cache, or nothing of anything.
func (b *bench) heat(file string, cold bool) error {
	if err := settle(file); err != nil {
		return err
	}
	if cold {
		return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	}
	return b.cat(file)
}

func (b *bench) cat(file string) error {
	_, err := b.command("sh", "-c", `cat "$1" >/dev/null`, "sh", file)
	return err
}

func (b *bench) timeRead(file string, cold bool) (time.Duration, error) {
	if err := b.heat(file, cold); err != nil {
		return 0, err
	}
	begun := time.Now()
	err := b.cat(file)
	return time.Since(begun), err
}

func (b *bench) timeResync(s *store, cold bool) (time.Duration, error) {
	if err := b.heat(s.backing, cold); err != nil {
		return 0, err
	}
	begun := time.Now()
	if _, err := s.Run(b.ctx, "resync", vmName, "--now"); err != nil {
		return 0, err
	}
	return s.comparedAfter(begun)
}

// timeRecovery kills and starts the appliance, and returns how long it compared after its mount was there, how long
// that took, and what was suspect.
func (b *bench) timeRecovery(s *store, cold bool) (compare, start time.Duration, suspect int64, err error) {
	if err := errors.Join(s.Kill(), b.heat(s.backing, cold)); err != nil {
		return 0, 0, 0, err
	}
	begun := time.Now()
	if err := s.Start(b.ctx); err != nil {
		return 0, 0, 0, err
	}
	err = s.Await(b.ctx, "the comparison", func() (bool, error) {
		vm, err := s.VM(b.ctx, vmName)
		suspect = vm.Recovery.SuspectBytes
		return suspect > 0 && vm.Recovery.ComparedBytes == suspect, err
	})
	if err != nil {
		return 0, 0, 0, err
	}
	mounted, err := s.loggedAfter(begun, `msg="store mounted"`)
	if err != nil {
		return 0, 0, 0, err
	}
	done, err := s.loggedAfter(begun, comparedLine)
	// A comparison may begin before the mount is there.
	return max(done-min(mounted, done), time.Millisecond), mounted, suspect, err
}

func (s *store) comparedAfter(begun time.Time) (time.Duration, error) {
	return s.loggedAfter(begun, comparedLine)
}

// loggedAfter is how long after begun the first line with the text was written. The log is closer to the event than
// any question about it.
func (s *store) loggedAfter(begun time.Time, text string) (time.Duration, error) {
	f, err := os.Open(filepath.Clean(s.LogFile()))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if at, ok := timeOf(lines.Text()); ok && !at.Before(begun.Truncate(time.Millisecond)) && strings.Contains(lines.Text(), text) {
			return at.Sub(begun), nil
		}
	}
	return 0, errors.Join(lines.Err(), fmt.Errorf("%s never says %s", s.LogFile(), text))
}

// timeOf is the time at the head of a line of the log.
func timeOf(line string) (time.Time, bool) {
	rest, ok := strings.CutPrefix(line, "time=")
	if !ok {
		return time.Time{}, false
	}
	stamp, _, _ := strings.Cut(rest, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	return at, err == nil
}
