package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// latencyRate is what the guest writes while its latency is taken: a busy server's load, not all a machine can do. At
// full load the answer would be the share of the processors that the capture takes.
const latencyRate = 2000 // operations a second

// latency compares the p99 of a guest's writes while epochs are sealed, spooled and shipped with that of an idle
// appliance. Each busy half-round begins with an epoch of a quarter of the disk, and one follows the other until the
// load ends.
func (b *bench) latency() (rows []row, err error) {
	size := b.size(matrixSize)
	s, err := b.serve("latency", size, rig.Options{SpoolLimit: 8 << 30}, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if err := b.fill(s.mounted, 0, size); err != nil {
		return nil, err
	}
	if _, err := s.Sync(b.ctx, vmName); err != nil {
		return nil, err
	}
	writes := job{name: "latency", rw: "randwrite", block: 4096, depth: 1, rate: latencyRate}
	var idle, busy, worstIdle, worstBusy []float64
	epochs := 0
	for round := range b.rounds {
		i, err := writes.run(b.ctx, s.mounted, size, 2*b.turn, false)
		if err != nil {
			return nil, err
		}
		if err := b.fill(s.mounted, 0, size/4); err != nil {
			return nil, err
		}
		l, n, err := b.underEpochs(s, writes, size)
		if err != nil {
			return nil, err
		}
		epochs += n
		idle, busy = append(idle, i.p99.Seconds()), append(busy, l.p99.Seconds())
		worstIdle, worstBusy = append(worstIdle, i.worst.Seconds()), append(worstBusy, l.worst.Seconds())
		b.progress("latency, round %d of %d: p99 %v idle, %v busy, worst %v and %v, %d epochs", round+1, b.rounds, i.p99, l.p99, i.worst, l.worst, n)
	}
	detail := fmt.Sprintf("p99 %v idle, %v during %d epochs; worst %v and %v; 4 KiB random writes at %d/s",
		seconds(median(idle)), seconds(median(busy)), epochs, seconds(median(worstIdle)), seconds(median(worstBusy)), latencyRate)
	return []row{ratioRow("write latency p99 while epochs are sealed, spooled and shipped", "idle appliance", over(busy, idle), atMost(1.2), detail)}, nil
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Microsecond)
}

// underEpochs runs the load while one epoch after the other is shipped, and returns how many were.
func (b *bench) underEpochs(s *store, j job, size int64) (load, int, error) {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	type shipped struct {
		epochs int
		err    error
	}
	done := make(chan shipped, 1)
	go func() {
		var n shipped
		for ctx.Err() == nil {
			if _, err := s.Sync(ctx, vmName); err != nil && ctx.Err() == nil {
				n.err = err
				break
			}
			n.epochs++
		}
		done <- n
	}()
	l, err := j.run(b.ctx, s.mounted, size, 2*b.turn, false)
	cancel()
	n := <-done
	return l, n.epochs, errors.Join(err, n.err)
}

// fill writes random bytes through the mount.
func (b *bench) fill(file string, from, n int64) error {
	_, err := b.command("dd", "if=/dev/urandom", "of="+file, "bs=1M", fmt.Sprintf("seek=%d", from>>20), fmt.Sprintf("count=%d", n>>20), "conv=notrunc,fsync", "status=none")
	return err
}
