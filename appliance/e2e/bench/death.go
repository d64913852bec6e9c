package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

const (
	deathImage   = 64 << 20 // bytes of each image
	imagesPerVM  = 10
	deathSeconds = 1.0 // the goal for the 99th percentile
	firstStart   = 5 * time.Minute
)

// deaths measures how long guests wait when the process that serves is killed: from its death to the answer of a write that is sent
// then. Somebody keeps the mount's connection and starts the next process 50 ms later; the unit's manager does
// after its RestartSec, 250 ms.
func (b *bench) deaths() (rows []row, err error) {
	for _, images := range []int{10, 1000} {
		r, err := b.deathsWith(images)
		if err != nil {
			return rows, fmt.Errorf("%d images: %w", images, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func (b *bench) deathsWith(images int) (r row, err error) {
	s, g, err := b.keptStore(fmt.Sprintf("deaths%d", images), images)
	if err != nil {
		return row{}, err
	}
	defer func() { err = errors.Join(err, g.close(), s.end()) }()
	n := 100
	if b.short {
		n = 10
	}
	var waits []float64
	for i := range n {
		wait, err := b.death(s, g)
		if err != nil {
			return row{}, fmt.Errorf("death %d: %w", i+1, err)
		}
		waits = append(waits, wait.Seconds())
	}
	p50, p99 := percentile(waits, 0.5), percentile(waits, 0.99)
	b.progress("deaths, %d images: p50 %v, p99 %v", images, seconds(p50), seconds(p99))
	return row{what: fmt.Sprintf("from death to the first answered request, %d images, p99 in seconds", images), value: fmt.Sprintf("%.2f", p99), median: p99, budget: atMost(deathSeconds),
		detail: fmt.Sprintf("p50 %v, p99 %v, worst %v of %d SIGKILLs", seconds(p50), seconds(p99), seconds(slices.Max(waits)), n)}, nil
}

// keptStore serves so many images under a keeper; the writer has the first one open.
func (b *bench) keptStore(name string, images int) (*store, *writer, error) {
	s, err := b.configureStore(name, rig.Options{Keeper: true}, "")
	if err != nil {
		return nil, nil, err
	}
	for i := range images {
		if err := makeImage(filepath.Join(s.Source, fmt.Sprintf("vm%03d", i/imagesPerVM), fmt.Sprintf("disk%d.raw", i%imagesPerVM)), deathImage); err != nil {
			return nil, nil, err
		}
	}
	if err := b.served(s); err != nil {
		return nil, nil, errors.Join(err, s.end())
	}
	g, err := newWriter(filepath.Join(s.Mount, "vm000", "disk0.raw"), deathImage)
	if err != nil {
		return nil, nil, errors.Join(err, s.end())
	}
	return s, g, nil
}

// served starts the appliance: the first time it makes the records of every image.
func (b *bench) served(s *store) error {
	if err := s.Launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, firstStart)
	defer cancel()
	return s.Await(ctx, "the appliance to serve", func() (bool, error) {
		_, err := s.Status(ctx)
		return err == nil && rig.Mounted(s.Mount), nil
	})
}

// death kills the process, sends a write when it is dead, and returns how long that took. The next process is at work then.
func (b *bench) death(s *store, g *writer) (time.Duration, error) {
	for range 64 { // something is active
		if err := g.write(); err != nil {
			return 0, err
		}
	}
	pid := s.Pid()
	if err := killed(pid); err != nil {
		return 0, err
	}
	died := time.Now()
	if err := g.write(); err != nil {
		return 0, err
	}
	waited := time.Since(died)
	return waited, s.Followed(b.ctx, pid)
}

// killed kills a process and returns when it is dead.
func killed(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	return ended(fd)
}

// ended waits for the end of a process, 30 s at most.
func ended(pidfd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 30_000)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errors.New("the process does not die")
		default:
			return nil
		}
	}
}

// percentile is the smallest value that so large a part of all do not exceed.
func percentile(v []float64, part float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	return s[max(0, int(math.Ceil(part*float64(len(s))))-1)]
}

// writer writes blocks of 4 KiB to an image, one after the other, around the page cache.
type writer struct {
	file *os.File
	mem  []byte
	at   int64
	size int64
}

const writerBlock = 4096

func newWriter(path string, size int64) (*writer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(-1, 0, writerBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &writer{file: f, mem: mem, size: size}, nil
}

// write writes the next block, with another content than before.
func (w *writer) write() error {
	*(*int64)(unsafe.Pointer(&w.mem[0])) = time.Now().UnixNano()
	_, err := w.file.WriteAt(w.mem, w.at)
	w.at = (w.at + writerBlock) % w.size
	return err
}

func (w *writer) close() error { return errors.Join(w.file.Close(), unix.Munmap(w.mem)) }
