package shipper

import (
	"fmt"
	"sync"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
)

// head is the image that a disk begins with: what its VM writes to. After a snapshot or
// a merge it is another file, and the disk is the same.
type head struct {
	disk string // id of the disk: that of the file it began with
	mu   struct {
		sync.Mutex // never held over I/O
		attached
	}
}

func newHead(disk string, a attached) *head {
	h := &head{disk: disk}
	h.set(a)
	return h
}

func (h *head) set(a attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.attached = a
}

func (h *head) get() attached {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.attached
}

// lose takes the file away. Its id and its names stay.
func (h *head) lose() {
	a := h.get()
	h.set(attached{src: noSource{a.src.ID(), a.src.Name(), a.src.Path()}, probe: noProbe, stat: a.stat})
}

// lost tells whether the file is gone.
func (h *head) lost() bool {
	_, lost := h.get().src.(noSource)
	return lost
}

// file is the id of the file in the change log.
func (h *head) file() string { return h.get().src.ID() }

func (h *head) ID() string                               { return h.disk }
func (h *head) Name() string                             { return h.get().src.Name() }
func (h *head) Path() string                             { return h.get().src.Path() }
func (h *head) Stat() (chain.Stat, error)                { return h.get().src.Stat() }
func (h *head) ReadAt(p []byte, off int64) (int, error)  { return h.get().src.ReadAt(p, off) }
func (h *head) Datasync() error                          { return h.get().src.Datasync() }
func (h *head) Size() (int64, error)                     { return h.get().src.Size() }
func (h *head) NextData(off int64) (int64, int64, error) { return h.get().src.NextData(off) }
func (h *head) PendingBlocks() int64                     { return h.get().src.PendingBlocks() }
func (h *head) Suspect() bool                            { return h.get().src.Suspect() }

// noSource is a file that is gone.
type noSource struct{ id, name, path string }

func (s noSource) gone() error { return fmt.Errorf("%s is gone: %w", s.path, errRetired) }

func (s noSource) ID() string                           { return s.id }
func (s noSource) Name() string                         { return s.name }
func (s noSource) Path() string                         { return s.path }
func (s noSource) Stat() (chain.Stat, error)            { return chain.Stat{}, s.gone() }
func (s noSource) ReadAt([]byte, int64) (int, error)    { return 0, s.gone() }
func (s noSource) Datasync() error                      { return s.gone() }
func (s noSource) Size() (int64, error)                 { return 0, s.gone() }
func (s noSource) NextData(int64) (int64, int64, error) { return 0, 0, s.gone() }
func (s noSource) PendingBlocks() int64                 { return 0 }
func (s noSource) Suspect() bool                        { return false }

func noProbe() (image.Info, error) { return image.Info{}, errRetired }

var (
	_ Source = (*head)(nil)
	_ Source = noSource{}
)
