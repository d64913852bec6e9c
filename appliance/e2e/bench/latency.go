package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// latencyRate is what the guest writes while its latency is taken: a busy server's load, not all a machine can do. At
// full load the answer would be the share of the processors that the capture takes.
const latencyRate = 2000 // operations a second

// latency compares the p99 of a guest's writes while an epoch is sealed, spooled and shipped with that of an idle
// appliance. Before both the whole disk is written anew; only in one half of a round it is sealed then, and what the
// disk holds takes about as long to ship as the load runs.
func (b *bench) latency() (rows []row, err error) {
	size := b.size(matrixSize)
	s, err := b.serve("latency", size, rig.Options{SpoolLimit: 8 << 30}, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if _, err := s.Sync(b.ctx, vmName); err != nil {
		return nil, err
	}
	var idle, busy tail
	for round := range b.rounds {
		for half := range 2 {
			sealed := (round+half)%2 == 0 // the order alternates
			l, err := b.latencyOnce(s, size, sealed)
			if err != nil {
				return nil, err
			}
			if sealed {
				busy.add(l)
			} else {
				idle.add(l)
			}
		}
		b.progress("latency, round %d of %d: p99 %v idle, %v busy", round+1, b.rounds, seconds(idle.p99[round]), seconds(busy.p99[round]))
	}
	detail := fmt.Sprintf("p99 %v idle, %v during an epoch of %s; worst %v and %v; 4 KiB random writes at %d/s",
		seconds(median(idle.p99)), seconds(median(busy.p99)), mebibytes(size), seconds(median(idle.worst)), seconds(median(busy.worst)), latencyRate)
	return []row{ratioRow("write latency p99 while an epoch is sealed, spooled and shipped", "idle appliance", over(busy.p99, idle.p99), atMost(1.2), detail)}, nil
}

// tail is the slow end of several loads, in seconds.
type tail struct{ p99, worst []float64 }

func (t *tail) add(l load) {
	t.p99, t.worst = append(t.p99, l.p99.Seconds()), append(t.worst, l.worst.Seconds())
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Microsecond)
}

// latencyOnce runs the load after the disk was written, with an epoch of all of it beside or without.
func (b *bench) latencyOnce(s *store, size int64, busy bool) (load, error) {
	if err := errors.Join(b.fill(s.mounted, 0, size), settle(s.backing)); err != nil {
		return load{}, err
	}
	shipped := make(chan error, 1)
	if busy {
		go func() {
			_, err := s.Sync(b.ctx, vmName)
			shipped <- err
		}()
	} else {
		shipped <- nil
	}
	l, err := job{name: "latency", rw: "randwrite", block: 4096, depth: 1, rate: latencyRate}.run(b.ctx, &variant{file: s.mounted}, size, b.turn)
	return l, errors.Join(err, <-shipped)
}

// fill writes random bytes through the mount.
func (b *bench) fill(file string, from, n int64) error {
	_, err := b.command("dd", "if=/dev/urandom", "of="+file, "bs=1M", fmt.Sprintf("seek=%d", from>>20), fmt.Sprintf("count=%d", n>>20), "conv=notrunc,fsync", "status=none")
	return err
}
