package shipper

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
)

// attached is an image of the VM that is tracked: the leaf of a disk, or what one lies over.
type attached struct {
	src   Source
	probe Probe
	stat  chain.Stat // which file it is; zero if nobody could say
}

// files are the tracked images of a VM, by their ids in the change log, and where the others are.
type files struct {
	store chain.Store // nil: there are no others
	mu    struct {
		sync.Mutex // never held over I/O
		byID       map[string]attached
	}
}

func newFiles(store chain.Store) *files {
	f := &files{store: store}
	f.mu.byID = map[string]attached{}
	return f
}

// errMoved: an image that a disk is read through is not where it was.
var errMoved = errors.New("it is not where it was")

// identity takes what does not identify a file out of a Stat: a device has another number after a restart, and a store is on
// one.
func identity(st chain.Stat) chain.Stat {
	st.Device = 0
	return st
}

func (f *files) add(src Source, probe Probe) attached {
	a := attached{src: src, probe: probe}
	if st, err := src.Stat(); err == nil {
		a.stat = identity(st)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.byID[src.ID()] = a
	return a
}

func (f *files) remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mu.byID, id)
}

func (f *files) get(id string) (attached, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.mu.byID[id]
	return a, ok
}

func (f *files) all() []attached {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]attached, 0, len(f.mu.byID))
	for _, a := range f.mu.byID {
		all = append(all, a)
	}
	return all
}

// find is the tracked image that is a file.
func (f *files) find(st chain.Stat) (attached, bool) {
	for _, a := range f.all() {
		if a.stat.SameFile(st) {
			return a, true
		}
	}
	return attached{}, false
}

// reader reads a member as it is now. A chain.File is to be closed.
func (f *files) reader(m chain.Mark) (io.ReaderAt, error) {
	if a, ok := f.find(m.Stat); ok {
		return a.src, nil
	}
	if f.store == nil {
		return nil, fmt.Errorf("%s: %w", m.Name, errMoved)
	}
	file, err := plain{f.store}.Open(m.Name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", m.Name, errMoved, err)
	}
	st, err := file.Stat()
	if err == nil && !st.SameFile(m.Stat) {
		err = fmt.Errorf("%s: %w", m.Name, errMoved)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// plain is a store whose files are identified as here.
type plain struct{ chain.Store }

func (s plain) Open(name string) (chain.File, error) {
	f, err := s.Store.Open(name)
	if err != nil {
		return nil, err
	}
	return plainFile{f}, nil
}

type plainFile struct{ chain.File }

func (f plainFile) Stat() (chain.Stat, error) {
	st, err := f.File.Stat()
	return identity(st), err
}

// noStore has no file.
type noStore struct{}

func (noStore) Open(name string) (chain.File, error) {
	return nil, fmt.Errorf("%s: %w", name, image.ErrUnsupported)
}

func (noStore) Names(string) ([]string, error) { return nil, nil }

func (f *files) parents() chain.Store {
	if f.store == nil {
		return noStore{}
	}
	return plain{f.store}
}

// sealedStore has the files of a store as they were at a seal, as far as they are tracked.
type sealedStore struct {
	chain.Store
	files *files
	epoch Epoch
	names map[string]sealedMember // that were opened
}

// sealedMember is a parent as of the seal.
type sealedMember struct {
	chain.File
	id   string    // in the change log, "" if it is not tracked
	view EpochDisk // nil: it is read as it is
}

// Open implements chain.Store. A tracked file that the epoch does not have came after the seal: what it is now counts, and
// its time stamps tell that it was not there.
func (s sealedStore) Open(name string) (chain.File, error) {
	f, err := s.Store.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m := sealedMember{File: f}
	if a, ok := s.files.find(st); ok {
		if ed, known := s.epoch.Disk(a.src.ID()); known {
			m.id, m.view = a.src.ID(), ed
		}
	}
	s.names[name] = m
	return m, nil
}

// ReadAt implements io.ReaderAt.
func (m sealedMember) ReadAt(p []byte, off int64) (int, error) {
	if m.view == nil {
		return m.File.ReadAt(p, off)
	}
	return sealedFile{m.view}.ReadAt(p, off)
}

// Stat implements chain.File.
func (m sealedMember) Stat() (chain.Stat, error) {
	st, err := m.File.Stat()
	if m.view != nil {
		st.Size = m.view.FileSize()
	}
	return st, err
}
