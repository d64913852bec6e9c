package appliance

import (
	"context"
	"io"
	"iter"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// volume shows a VM of the journal as the shipper consumes it: the stages do not
// import each other.
type volume struct{ vm *journal.VM }

func (v volume) Seal(r shipper.SealRequest) (shipper.Epoch, error) {
	s, err := v.vm.Seal(journal.SealRequest{Extra: r.Extra, Now: r.Now, SavedLimit: r.SavedLimit})
	if err != nil {
		return nil, err
	}
	return epoch{s}, nil
}

func (v volume) Deactivate(ctx context.Context) error {
	_, err := v.vm.Deactivate(ctx)
	return err
}

func (v volume) LastEpoch() uint64 { return v.vm.LastEpoch() }

func (v volume) RaiseEpoch(atLeast uint64) error { return v.vm.RaiseEpoch(atLeast) }

// epoch shows a sealed epoch.
type epoch struct{ *journal.Sealed }

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
			return sealedDisk{d}, true
		}
	}
	return nil, false
}

type sealedDisk struct{ *journal.SealedDisk }

func (s sealedDisk) FileSize() int64 { return s.Size }

func (s sealedDisk) SuspectAtSeal() bool { return s.SealedDisk.SuspectAtSeal }

func (s sealedDisk) List(maxRun int64) iter.Seq[shipper.FileRange] { return s.SealedDisk.List(maxRun) }

// source is the live side of a disk.
type source struct {
	disk *journal.Disk
	file *os.File
}

func (s source) ID() string { return s.disk.ID() }

func (s source) Name() string { return s.disk.Name() }

func (s source) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

func (s source) Datasync() error { return unix.Fdatasync(int(s.file.Fd())) }

func (s source) Size() (int64, error) {
	st, err := s.file.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (s source) PendingBlocks() int64 { return s.disk.PendingBlocks() }

func (s source) Suspect() bool { return len(s.disk.Suspect()) > 0 }

// NextData finds data by SEEK_DATA; a file system that knows no holes says that
// everything is data.
func (s source) NextData(off int64) (start, end int64, err error) {
	fd := int(s.file.Fd())
	start, err = unix.Seek(fd, off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, &os.PathError{Op: "seek data", Path: s.file.Name(), Err: err}
	}
	end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, &os.PathError{Op: "seek hole", Path: s.file.Name(), Err: err}
	}
	return start, end, nil
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
	_                   = extent.BlockSize
)
