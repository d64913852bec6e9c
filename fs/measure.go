package fs

import (
	"math/bits"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// sampleBits: one request in two to this power is measured.
const sampleBits = 6

// sampled picks requests by their number, which the kernel counts for us: no shared counter on the write path. The
// number is multiplied first, or of requests that alternate only one kind would ever be picked.
func (s *store) sampled(unique uint64) bool {
	return s.observe != nil && bits.LeadingZeros64(unique*0x9e3779b97f4a7c15) >= sampleBits
}

// Read is read, measured now and then.
func (s *store) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if !s.sampled(in.Unique) {
		return s.read(cancel, in, buf)
	}
	begin := time.Now()
	r, st := s.read(cancel, in, buf)
	s.observe("read", time.Since(begin))
	return r, st
}

// Writev is writev, measured now and then.
func (s *store) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if !s.sampled(in.Unique) {
		return s.writev(cancel, in, data)
	}
	begin := time.Now()
	n, st := s.writev(cancel, in, data)
	s.observe("write", time.Since(begin))
	return n, st
}

// Fsync is fsync, measured now and then.
func (s *store) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if !s.sampled(in.Unique) {
		return s.fsync(cancel, in)
	}
	begin := time.Now()
	st := s.fsync(cancel, in)
	s.observe("fsync", time.Since(begin))
	return st
}
