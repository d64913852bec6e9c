package fs

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// One in 64, whatever the pattern in which the kernel counts: of requests that alternate, each kind is seen.
func TestSampling(t *testing.T) {
	s := &store{observe: func(string, time.Duration) {}}
	for step := uint64(1); step <= 8; step++ {
		n := 0
		const requests = 1 << 16
		for i := range uint64(requests) {
			if s.sampled(2 + i*step*2) {
				n++
			}
		}
		if share := float64(requests) / float64(n); share < 50 || share > 80 {
			t.Errorf("every %d-th request: one in %.0f", step, share)
		}
	}
	if (&store{}).sampled(0) {
		t.Error("nobody listens")
	}
}

func TestMeasuredVerbs(t *testing.T) {
	seen := map[string]int{}
	s, err := newStore(t.TempDir(), nil, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	defer s.OnUnmount()
	s.observe = func(verb string, took time.Duration) { seen[verb]++ }
	head := fuse.InHeader{NodeId: 1 << 40} // an inode nobody has: the answer does not matter
	for unique := range uint64(6400) {
		head.Unique = 2 * unique
		s.Read(nil, &fuse.ReadIn{InHeader: head}, nil)
		s.Writev(nil, &fuse.WriteIn{InHeader: head}, nil)
		s.Fsync(nil, &fuse.FsyncIn{InHeader: head})
	}
	for _, verb := range []string{"read", "write", "fsync"} {
		if n := seen[verb]; n < 80 || n > 130 {
			t.Errorf("%s: measured %d of 6400 times", verb, n)
		}
	}
}

// What a request that is not measured pays.
func BenchmarkSampled(b *testing.B) {
	s := &store{observe: func(string, time.Duration) {}}
	n := 0
	for i := uint64(0); b.Loop(); i += 2 {
		if s.sampled(i) {
			n++
		}
	}
	if n == 0 && b.N > 1000 {
		b.Fatal("nothing is ever measured")
	}
}
