package imagetest

import (
	"io"
	"runtime"
	"testing"
)

// Sparse is a file of Size bytes that reads as zeros but for the parts: where each lies.
type Sparse struct {
	Size  int64
	Parts map[int64][]byte
}

// ReadAt implements io.ReaderAt.
func (s Sparse) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(s.Size-off, 0)))
	clear(p[:n])
	for at, b := range s.Parts {
		if from, to := max(at, off), min(at+int64(len(b)), off+int64(n)); from < to {
			copy(p[from-off:to-off], b[from-at:to-at])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// CheckMemory demands that an image is opened, or refused, with at most limit bytes of memory, what was given back counted.
func CheckMemory(t testing.TB, what string, limit uint64, open func() error) error {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := open()
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > limit {
		t.Errorf("%s: %d bytes of memory, at most %d: %v", what, took, limit, err)
	}
	return err
}
