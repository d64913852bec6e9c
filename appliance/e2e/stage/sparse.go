package stage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// What is moved for a sparse disk may exceed its data by this for requests, records and the first segments.
const sparseOverhead = 16 << 20

// memoryLimit is DESIGN §8: 192 MiB, and 96 MiB for each TiB of protected disk.
func memoryLimit(size int64) int64 { return 192<<20 + size>>40*96<<20 + size&(1<<40-1)*96>>20 }

// Sparse replicates a large disk of holes.
func Sparse(ctx context.Context, e *Env, r *Report) error {
	return sparse(ctx, e, r, 24<<30, int64(e.count(200, 64))<<20)
}

func sparse(ctx context.Context, e *Env, r *Report, size, data int64) (err error) {
	s := &sparseDisk{env: e, report: r, size: size, data: data}
	g, target, end, err := setup(ctx, e, r, "sparse", nil, rig.Options{Compression: `"off"`}, s.create)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	s.guest, g.vm = g, sparseVM
	if err := g.await(ctx, 10*time.Minute, "the first point of a sparse disk", func(vm rig.VM) bool { return vm.LastPoint != nil }); err != nil {
		return err
	}
	s.judge(target)
	return s.compare(ctx)
}

const (
	sparseVM   = "sparse"
	sparseName = "big.raw"
	piece      = 2 << 20
)

type sparseDisk struct {
	*guest
	env        *Env
	report     *Report
	size, data int64
	began      time.Time
}

// create spreads the data, incompressible, evenly over the disk.
func (s *sparseDisk) create(a *rig.Rig) error {
	path := filepath.Join(a.Source, sparseVM, sparseName)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(s.size); err != nil {
		return err
	}
	rng := rand.NewChaCha8([32]byte{byte(s.env.Seed)})
	buf := make([]byte, piece)
	for i := range s.data / piece {
		_, _ = rng.Read(buf) // it never fails
		if _, err := f.WriteAt(buf, i*(s.size/(s.data/piece))/4096*4096); err != nil {
			return err
		}
	}
	s.began = time.Now()
	return f.Close()
}

func (s *sparseDisk) judge(target *rig.Target) {
	took := time.Since(s.began)
	memory, err := s.rig.Memory()
	s.report.Check(err, "memory of the appliance")
	limit := memoryLimit(s.size)
	s.report.Figure("memory", "%d MiB, at most %d", memory>>20, limit>>20)
	if memory > limit {
		s.report.Fail("the appliance had %d MiB resident, at most %d are allowed", memory>>20, limit>>20)
	}
	if target.Proxy == nil {
		return
	}
	moved := target.Proxy.Sent()
	s.report.Figure("moved", "%d MiB for %d MiB of data in %d GiB, in %v", moved>>20, s.data>>20, s.size>>30, took.Round(100*time.Millisecond))
	if moved < s.data || moved > s.data+sparseOverhead {
		s.report.Fail("%d bytes moved for %d bytes of data", moved, s.data)
	}
}

// compare brings the disk back: the same bytes, and holes where there were.
func (s *sparseDisk) compare(ctx context.Context) error {
	dir := filepath.Join(s.rig.Dir, "export")
	if err := s.rig.Export(ctx, sparseVM, "latest", dir); err != nil {
		return err
	}
	exported := rig.Exported(dir, sparseName)
	allocated, err := rig.Allocated(exported)
	if err != nil {
		return err
	}
	s.report.Figure("export", "%d MiB allocated", allocated>>20)
	if allocated > s.data+sparseOverhead {
		s.report.Fail("the export allocates %d bytes for %d of data", allocated, s.data)
	}
	if err := command(ctx, "qemu-img", "compare", "-f", "raw", "-F", "raw", exported, filepath.Join(s.rig.Source, sparseVM, sparseName)); err != nil {
		return fmt.Errorf("export and store: %w", err)
	}
	return s.rig.Verify(ctx, sparseVM, "latest")
}
