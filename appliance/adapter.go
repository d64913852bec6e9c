package appliance

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// volume shows a VM of the journal as the shipper consumes it: the stages do not
// import each other.
type volume struct {
	vm      *journal.VM
	foreign func(diskID string) bool  // another process may be writing to the image
	doubts  func(diskID string) int64 // how often one was noticed
}

func (v volume) Seal(r shipper.SealRequest) (shipper.Epoch, error) {
	written, doubts := map[string]bool{}, map[string]int64{}
	for _, d := range v.vm.Disks() { // before the seal: one that ends here has made its disk suspect by then
		doubts[d.ID()] = v.doubts(d.ID())
		written[d.ID()] = v.foreign(d.ID())
	}
	s, err := v.vm.Seal(journal.SealRequest{Extra: r.Extra, Whole: r.Whole, SavedLimit: r.SavedLimit})
	if err != nil {
		return nil, err
	}
	// One that came and went while the epoch was captured changed blocks that nobody saved.
	return epoch{s, func(diskID string) bool {
		return written[diskID] || v.foreign(diskID) || v.doubts(diskID) != doubts[diskID]
	}}, nil
}

func (v volume) Deactivate(ctx context.Context) error {
	_, err := v.vm.Deactivate(ctx)
	return err
}

func (v volume) LastEpoch() uint64 { return v.vm.LastEpoch() }

func (v volume) RaiseEpoch(atLeast uint64) error { return v.vm.RaiseEpoch(atLeast) }

// epoch shows a sealed epoch.
type epoch struct {
	*journal.Sealed
	foreign func(diskID string) bool // another process had the image open for writing at the seal or since
}

func (e epoch) Number() uint64 { return e.Sealed.Epoch }

func (e epoch) UUID() [16]byte { return e.Sealed.UUID }

func (e epoch) Time() time.Time { return e.Sealed.Time }

func (e epoch) Disks() []string {
	ids := make([]string, 0, len(e.Sealed.Disks))
	for _, d := range e.Sealed.Disks {
		ids = append(ids, d.Disk.ID())
	}
	return ids
}

func (e epoch) Disk(id string) (shipper.EpochDisk, bool) {
	for _, d := range e.Sealed.Disks {
		if d.Disk.ID() == id {
			return sealedDisk{d, e.foreign(id)}, true
		}
	}
	return nil, false
}

type sealedDisk struct {
	*journal.SealedDisk
	foreign bool
}

func (s sealedDisk) FileSize() int64 { return s.Size }

func (s sealedDisk) SuspectAtSeal() bool { return s.SealedDisk.SuspectAtSeal || s.foreign }

func (s sealedDisk) List(maxRun int64) iter.Seq[shipper.FileRange] { return s.SealedDisk.List(maxRun) }

// source is the live side of a disk.
type source struct {
	disk    *journal.Disk
	file    *os.File
	path    *atomic.Pointer[string] // in the store
	foreign *atomic.Bool            // another process may be writing to it
}

func (s source) ID() string { return s.disk.ID() }

func (s source) Name() string { return s.disk.Name() }

func (s source) Path() string { return *s.path.Load() }

// Stat says which file it is.
func (s source) Stat() (chain.Stat, error) {
	st, err := chain.OS{File: s.file}.Stat()
	return st, whileRemoved(err)
}

func (s source) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.file.ReadAt(p, off)
	return n, whileRemoved(err)
}

// Datasync holds on to the descriptor, as seek does.
func (s source) Datasync() error {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := conn.Control(func(fd uintptr) { err = unix.Fdatasync(int(fd)) }); controlErr != nil {
		return whileRemoved(errors.Join(os.ErrClosed, controlErr))
	}
	return err
}

func (s source) Size() (int64, error) {
	st, err := s.file.Stat()
	if err != nil {
		return 0, whileRemoved(err)
	}
	return st.Size(), nil
}

// whileRemoved makes the end of a removed disk's file what it is for a stage at
// work on it: the next turn does without the disk.
func whileRemoved(err error) error {
	if !errors.Is(err, os.ErrClosed) {
		return err
	}
	return &shipper.Problem{Code: "disk-removed", Class: retry.Recoverable, Err: err, Action: "none: the next turn does without the disk"}
}

func (s source) PendingBlocks() int64 { return s.disk.PendingBlocks() }

func (s source) Suspect() bool { return s.foreign.Load() || s.disk.Suspected() }

// NextData finds data by SEEK_DATA; a file system that knows no holes says that
// everything is data.
func (s source) NextData(off int64) (start, end int64, err error) {
	start, err = s.seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, io.EOF
	case errors.Is(err, unix.EINVAL):
		return s.allData(off)
	case err != nil:
		return 0, 0, whileRemoved(err)
	}
	end, err = s.seek(start, unix.SEEK_HOLE)
	return start, end, whileRemoved(err)
}

// seek holds on to the descriptor: a number taken out could by then be another file's.
func (s source) seek(off int64, whence int) (at int64, err error) {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := conn.Control(func(fd uintptr) { at, err = unix.Seek(int(fd), off, whence) })
	if controlErr != nil { // its only cause, and not an os.ErrClosed by itself
		err = errors.Join(os.ErrClosed, controlErr)
	}
	if err != nil {
		err = &os.PathError{Op: "seek", Path: s.file.Name(), Err: err}
	}
	return at, err
}

// allData is NextData where the kernel cannot tell.
func (s source) allData(off int64) (start, end int64, err error) {
	size, err := s.Size()
	if err == nil && off >= size {
		err = io.EOF
	}
	return off, size, err
}

// documents keeps the shipper's state in the journal's store.
type documents struct{ j *journal.Journal }

func (d documents) Load(key string, v any) (bool, error) { return d.j.Load(key, v) }

func (d documents) Save(key string, v any) error { return d.j.Save(key, v) }

func (d documents) Remove(key string) error { return d.j.Remove(key) }

var (
	_ shipper.Volume    = volume{}
	_ shipper.Epoch     = epoch{}
	_ shipper.Source    = source{}
	_ shipper.Documents = documents{}
)
