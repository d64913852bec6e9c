package shipper

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// modelImage is an image file in memory. It outlives a process that crashes.
type modelImage struct {
	name       string
	translated bool // the file has a block table
	// guest is what the disk holds that begins with an image of a chain, nil if none does.
	guest func() []byte
	mu    struct {
		sync.Mutex
		data    []byte
		marked  bool
		inode   uint64
		written time.Time // by whom nobody tracks
	}
}

func newImage(name string, size int) *modelImage {
	m := &modelImage{name: name}
	m.mu.data = make([]byte, size)
	if image.IsImageName(name) && name[len(name)-4:] == ".vhd" {
		footer := image.FixedFooter(int64(size), [16]byte{7}, time.Unix(1_600_000_000, 0))
		m.mu.data = append(m.mu.data, footer[:]...)
	}
	return m
}

// bytes is a copy of the virtual disk.
func (m *modelImage) bytes() []byte {
	if m.guest != nil {
		return m.guest()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	data := m.mu.data
	if m.translated {
		return readTranslated(data)
	}
	if m.name[len(m.name)-4:] == ".vhd" {
		data = data[:len(data)-image.FooterSize]
	}
	return bytes.Clone(data)
}

// content is a copy of the file.
func (m *modelImage) content() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.mu.data)
}

// do performs a change of a guest.
func (m *modelImage) do(c extent.Change, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch end := int(c.Off + c.Len); c.Kind {
	case extent.Truncate:
		if int(c.Off) <= len(m.mu.data) {
			m.mu.data = bytes.Clone(m.mu.data[:c.Off])
		} else {
			m.mu.data = append(m.mu.data, make([]byte, int(c.Off)-len(m.mu.data))...)
		}
	case extent.Write:
		if end > len(m.mu.data) {
			m.mu.data = append(m.mu.data, make([]byte, end-len(m.mu.data))...)
		}
		copy(m.mu.data[c.Off:], data)
	default:
		clear(m.mu.data[min(int(c.Off), len(m.mu.data)):min(end, len(m.mu.data))])
	}
}

func (m *modelImage) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.NewReader(m.mu.data).ReadAt(p, off)
}

func (m *modelImage) Size() (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.mu.data)), nil
}

var inodes atomic.Uint64

func (m *modelImage) id() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.inode == 0 {
		m.mu.inode = inodes.Add(1)
	}
	return m.mu.inode
}

// Stat says which file it is.
func (m *modelImage) Stat() (chain.Stat, error) {
	inode := m.id()
	m.mu.Lock()
	defer m.mu.Unlock()
	at := time.Unix(1_600_000_000, 0)
	if !m.mu.written.IsZero() {
		at = m.mu.written
	}
	return chain.Stat{Size: int64(len(m.mu.data)), Inode: inode, Modified: at, Changed: at}, nil
}

func (m *modelImage) Datasync() error { return nil }

func (m *modelImage) Facts() (journal.Facts, error) {
	size, _ := m.Size()
	at := time.Unix(1_600_000_000, 0)
	return journal.Facts{Size: size, Mtime: at, Ctime: at, Ino: 1}, nil
}

func (m *modelImage) mark(to bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.marked = to
	return nil
}

func (m *modelImage) SetSuspectMark() error   { return m.mark(true) }
func (m *modelImage) ClearSuspectMark() error { return m.mark(false) }
func (m *modelImage) SuspectMarked() (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.marked, nil
}

// nextData finds data by looking, block by block.
func (m *modelImage) nextData(off int64) (start, end int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := int64(len(m.mu.data))
	zero := func(at int64) bool {
		return bytes.Count(m.mu.data[at:min(at+extent.BlockSize, size)], []byte{0}) == int(min(extent.BlockSize, size-at))
	}
	for start = off; start < size && zero(start); {
		start += extent.BlockSize
	}
	if start >= size {
		return 0, 0, io.EOF
	}
	for end = start; end < size && !zero(end); {
		end += extent.BlockSize
	}
	return start, min(end, size), nil
}

func (m *modelImage) probe() (image.Info, error) {
	size, _ := m.Size()
	return formats.Probe(m.name, m, size)
}

func mustProbe(t testing.TB, m *modelImage) image.Info {
	t.Helper()
	info, err := m.probe()
	if err != nil {
		t.Fatal(err)
	}
	return info
}
