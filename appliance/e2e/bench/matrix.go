package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// matrixSize is the file of each variant: all of them fit the page cache, so that no row measures the disk below,
// but the one that asks for it with fsync.
const matrixSize = 512 << 20

func matrixJobs() []job {
	return []job{
		{name: "1 MiB sequential write", rw: "write", block: 1 << 20, depth: 1},
		{name: "1 MiB sequential read", rw: "read", block: 1 << 20, depth: 1},
		{name: "4 KiB random write, QD1", rw: "randwrite", block: 4096, depth: 1},
		{name: "4 KiB random write, QD32", rw: "randwrite", block: 4096, depth: 32},
		{name: "4 KiB random write, fsync every 32", rw: "randwrite", block: 4096, depth: 1, fsync: 32},
		{name: "4 KiB random read, QD1", rw: "randread", block: 4096, depth: 1},
		{name: "4 KiB random read, QD32", rw: "randread", block: 4096, depth: 32},
	}
}

// figures are a job's, by variant, one a round.
type figures map[string][]float64

// matrix runs every job on every variant, round by round.
func (b *bench) matrix() (rows []row, err error) {
	size := b.size(matrixSize)
	variants, err := b.variants(size)
	defer func() {
		for _, v := range variants {
			err = errors.Join(err, v.close())
		}
	}()
	if err != nil {
		return nil, err
	}
	for _, v := range variants {
		// Afterwards the file has no holes, its pages are cached, its regions active, its blocks in the change set.
		if err := b.fill(v.file, 0, size); err != nil {
			return nil, err
		}
	}
	if err := b.sameCaches(variants); err != nil {
		return nil, err
	}
	jobs := matrixJobs()
	all, pairs := make([]figures, len(jobs)), make([]figures, len(jobs))
	for i, j := range jobs {
		if all[i], err = b.interleave(j, variants, size); err != nil {
			return nil, err
		}
		if pairs[i], err = b.pairs(j, variants, size); err != nil {
			return nil, err
		}
	}
	b.printMatrix(jobs, all, pairs)
	for i, j := range jobs {
		rows = append(rows, matrixRows(j, all[i], pairs[i])...)
	}
	return rows, nil
}

// sameCaches reads all files into an empty cache. A write costs ext4 more where the cache's folios are large, which they are
// as large as whoever came first read or wrote: the initial replication of a tracked disk read its holes, qemu wrote a
// dynamic VHD at other alignments.
func (b *bench) sameCaches(variants []*variant) error {
	if err := b.heat(variants[0].backing, true); err != nil {
		return err
	}
	for _, v := range variants {
		if err := b.heat(v.backing, false); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) variants(size int64) (made []*variant, err error) {
	for _, start := range []func() (*variant, error){
		func() (*variant, error) { return b.rawVariant(size) },
		func() (*variant, error) { return b.shimVariant(shimOff, size) },
		func() (*variant, error) { return b.shimVariant(shimOn, size) },
		func() (*variant, error) { return b.qemuVariant(size) },
	} {
		v, err := start()
		if err != nil {
			return made, err
		}
		made = append(made, v)
	}
	return made, nil
}

// turns is the order in which n variants run in a round: over n rounds each runs once in each place and, if n is even,
// once after each other one (E. J. Williams 1949), because a variant inherits the disk and the caches of the one before it.
// If n is odd the next n rounds go backwards, and it is twice in 2n rounds.
func turns(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		step := (i + 1) / 2
		if i%2 == 0 {
			step = n - step
		}
		order[i] = (step + round) % n
	}
	if n%2 == 1 && round/n%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

// interleave runs one job on all variants of the matrix.
func (b *bench) interleave(j job, variants []*variant, size int64) (figures, error) {
	return b.inTurns(j, variants, size, b.rounds, b.turn, func(round int, f figures) {
		b.progress("%s, round %d of %d: on/off %.2f, on/qemu %.2f, on/raw %.2f", j.name, round+1, b.rounds,
			f[shimOn][round]/f[shimOff][round], f[shimOn][round]/f[qemuFUSE][round], f[shimOn][round]/f[rawFile][round])
	})
}

// pairs runs one job with tracking on and off only, one right after the other: what tracking costs is small beside what a
// machine's speed wanders by while four variants have their turns.
func (b *bench) pairs(j job, variants []*variant, size int64) (figures, error) {
	const more, shorter = 8, 4
	var two []*variant
	for _, v := range variants {
		if v.name == shimOn || v.name == shimOff {
			two = append(two, v)
		}
	}
	return b.inTurns(j, two, size, more*b.rounds, b.turn/shorter, func(round int, f figures) {
		if r := over(f[shimOn], f[shimOff]); round+1 == more*b.rounds {
			b.progress("%s, %d pairs: on/off %v", j.name, len(r), r)
		}
	})
}

// inTurns runs one job on all variants in turn, round by round, in a balanced order, and tells of each round. Nobody's turn
// pays for what another left to be written back.
func (b *bench) inTurns(j job, variants []*variant, size int64, rounds int, turn time.Duration, told func(round int, f figures)) (figures, error) {
	f := figures{}
	for round := range rounds {
		for _, i := range turns(len(variants), round) {
			v := variants[i]
			for _, other := range variants {
				if err := settle(other.backing); err != nil {
					return nil, err
				}
			}
			l, err := j.run(b.ctx, v, size, turn)
			if err != nil {
				return nil, err
			}
			f[v.name] = append(f[v.name], l.figure(j))
		}
		told(round, f)
	}
	return f, nil
}

// matrixRows holds a job against its budgets: tracking must cost nothing, the mount must beat the alternative, and
// large transfers must come near the file itself.
func matrixRows(j job, f, pairs figures) []row {
	onOff := over(pairs[shimOn], pairs[shimOff])
	onQemu := over(f[shimOn], f[qemuFUSE])
	detail := fmt.Sprintf("on %s, off %s", rate(median(pairs[shimOn]), j.bandwidth()), rate(median(pairs[shimOff]), j.bandwidth()))
	rows := []row{
		ratioRow(j.name, "tracking off", onOff, atLeast(0.97), detail),
		ratioRow(j.name, "qemu-storage-daemon", onQemu, atLeast(1), "qemu "+rate(median(f[qemuFUSE]), j.bandwidth())),
	}
	if j.bandwidth() {
		rows = append(rows, ratioRow(j.name, "raw file", over(f[shimOn], f[rawFile]), atLeast(0.8), "raw "+rate(median(f[rawFile]), true)))
	}
	return rows
}

// printMatrix prints the figures behind the ratios.
func (b *bench) printMatrix(jobs []job, all, pairs []figures) {
	fmt.Fprintf(b.out, "\nThe fio matrix, medians of %d rounds of %v; ratios are medians of the rounds' ratios (smallest..largest), of on / off those of shorter turns, one right after the other:\n\n",
		b.rounds, b.turn.Round(time.Millisecond))
	names := []string{rawFile, shimOff, shimOn, qemuFUSE}
	printColumns(b.out, []string{"load", "raw file", "tracking off", "tracking on", "qemu-storage-daemon", "on / off", "on / qemu", "on / raw"}, func(yield func([]string)) {
		for i, j := range jobs {
			cells := []string{j.name}
			for _, n := range names {
				cells = append(cells, rate(median(all[i][n]), j.bandwidth()))
			}
			cells = append(cells, over(pairs[i][shimOn], pairs[i][shimOff]).String())
			for _, against := range []string{qemuFUSE, rawFile} {
				cells = append(cells, over(all[i][shimOn], all[i][against]).String())
			}
			yield(cells)
		}
	})
}
