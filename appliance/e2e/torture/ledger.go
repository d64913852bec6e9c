package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
)

// ledger remembers which seeds passed, in a file with a line for each.
type ledger struct {
	mu struct { // guards all; held over one write of a line
		sync.Mutex
		file   *os.File
		passed map[uint64]bool
		failed []uint64
		err    error // of the file; sticky
	}
}

func openLedger(path string) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	l := &ledger{}
	l.mu.file, l.mu.passed = f, map[uint64]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if seed, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil { // a torn last line passed nothing
			l.mu.passed[seed] = true
		}
	}
	if err := lines.Err(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *ledger) has(seed uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.passed[seed]
}

func (l *ledger) pass(seed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.passed[seed] = true
	if _, err := fmt.Fprintln(l.mu.file, seed); err != nil && l.mu.err == nil {
		l.mu.err = err
	}
}

func (l *ledger) fail(seed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.failed = append(l.mu.failed, seed)
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.passed)
}

func (l *ledger) wrong() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.mu.failed)
	return slices.Compact(slices.Clone(l.mu.failed))
}

func (l *ledger) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.mu.err, l.mu.file.Close())
}
