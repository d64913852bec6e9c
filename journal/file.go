package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SuspectAttr is the extended attribute that marks an image whose regions all
// count as active.
const SuspectAttr = "user.vhdrelay.suspect"

// MarkerSuffix ends the name of the marker file beside an image on a file
// system without extended attributes: ".<image name>" + MarkerSuffix.
const MarkerSuffix = ".vhdrelay-suspect"

// markerBlock is the size of the marker file, written in advance so that
// setting the mark needs no space; its first byte is the mark.
const markerBlock = 4096

// Facts tell whether an image changed behind our back.
type Facts struct {
	Size  int64     `json:"size"`
	Mtime time.Time `json:"mtime"`
	Ctime time.Time `json:"ctime"`
	Dev   uint64    `json:"dev"`
	Ino   uint64    `json:"ino"`
}

// File is the backing image of a disk, an open file description of its own: a
// failed write-back is reported once to each, and sharing the guest's would
// let its fsync take the error away from Datasync.
type File interface {
	io.ReaderAt
	// Datasync returns nil when everything answered before the call is on stable storage.
	Datasync() error
	// Size returns the size in bytes.
	Size() (int64, error)
	// Facts returns what a change behind our back would change.
	Facts() (Facts, error)
	// SetSuspectMark marks the image on stable storage. Repeatable.
	SetSuspectMark() error
	// ClearSuspectMark removes the mark from stable storage. Repeatable.
	ClearSuspectMark() error
	// SuspectMarked says whether the image is marked.
	SuspectMarked() (bool, error)
}

type osFile struct {
	*os.File
	marker *os.File // nil: the file system takes extended attributes
}

// OSFile makes a File of an open image, which it does not close. Where the file
// system has no extended attributes it makes the marker file beside the image
// now, while there is space. The file must be open for writing if marks are to be set.
func OSFile(f *os.File) (File, error) {
	_, err := unix.Fgetxattr(int(f.Fd()), SuspectAttr, nil)
	if err == nil || errors.Is(err, unix.ENODATA) {
		return osFile{File: f}, nil
	}
	if !errors.Is(err, unix.ENOTSUP) {
		return nil, fmt.Errorf("read mark of %s: %w", f.Name(), err)
	}
	marker, err := openMarker(MarkerPath(f.Name()))
	if err != nil {
		return nil, fmt.Errorf("marker file of %s: %w", f.Name(), err)
	}
	return osFile{File: f, marker: marker}, nil
}

// MarkerPath returns the path of the marker file of the image at path.
func MarkerPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+MarkerSuffix)
}

func openMarker(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := fillMarker(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// fillMarker gives a new marker file its block and its name in the directory.
func fillMarker(f *os.File) error {
	st, err := f.Stat()
	if err != nil || st.Size() >= markerBlock {
		return err
	}
	if _, err := f.WriteAt(make([]byte, markerBlock), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (f osFile) Datasync() error { return unix.Fdatasync(int(f.Fd())) }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Facts() (Facts, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return Facts{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return Facts{Size: st.Size, Mtime: time.Unix(st.Mtim.Unix()).UTC(), Ctime: time.Unix(st.Ctim.Unix()).UTC(), Dev: st.Dev, Ino: st.Ino}, nil
}

func (f osFile) SetSuspectMark() error {
	if f.marker != nil {
		return f.writeMarker('1')
	}
	if err := unix.Fsetxattr(int(f.Fd()), SuspectAttr, []byte("1"), 0); err != nil {
		return fmt.Errorf("mark %s: %w", f.Name(), err)
	}
	return f.Sync() // not fdatasync: the attribute is metadata
}

func (f osFile) ClearSuspectMark() error {
	if f.marker != nil {
		return f.writeMarker(0)
	}
	err := unix.Fremovexattr(int(f.Fd()), SuspectAttr)
	if err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("unmark %s: %w", f.Name(), err)
	}
	return f.Sync()
}

func (f osFile) writeMarker(b byte) error {
	if _, err := f.marker.WriteAt([]byte{b}, 0); err != nil {
		return err
	}
	return unix.Fdatasync(int(f.marker.Fd()))
}

func (f osFile) SuspectMarked() (bool, error) {
	if f.marker != nil {
		var b [1]byte
		_, err := f.marker.ReadAt(b[:], 0)
		return b[0] != 0, err
	}
	_, err := unix.Fgetxattr(int(f.Fd()), SuspectAttr, nil)
	if errors.Is(err, unix.ENODATA) {
		return false, nil
	}
	return err == nil, err
}
