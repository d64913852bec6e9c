package guest

import (
	"context"
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest/wire"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// File is a file of the guest, for a load of stamped blocks. Only the stamps go over the port.
type File struct {
	m    *Machine
	ctx  context.Context
	name wire.File
}

// Open names a file of the guest; the guest opens it at the first write. Operations end with ctx.
func (m *Machine) Open(ctx context.Context, path string, flags int) *File {
	return &File{m, ctx, wire.File{Path: path, Flags: flags}}
}

// WriteAt writes stamped blocks; p must be what Stamp.Put made of one write.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	s, err := stamp.Parse(p[:min(len(p), stamp.BlockSize)])
	if err != nil {
		return 0, err
	}
	if s.First*stamp.BlockSize != off || int(s.Count)*stamp.BlockSize != len(p) {
		return 0, fmt.Errorf("%v: not a write of %d bytes at %d", s, len(p), off)
	}
	link := f.m.link
	if link == nil {
		return 0, ErrGone
	}
	_, err = link.ask(f.ctx, wire.Request{Write: &wire.Write{
		File: f.name, ID: s.ID, Seq: s.Seq, First: s.First, Count: s.Count, Writer: s.Writer, Disk: s.Disk,
	}})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Sync is an fsync in the guest.
func (f *File) Sync() error {
	if f.m.link == nil {
		return ErrGone
	}
	_, err := f.m.link.ask(f.ctx, wire.Request{Sync: &wire.Sync{File: f.name}})
	return err
}

// Close does nothing: writers share files in the guest. See CloseFiles.
func (f *File) Close() error { return nil }

// CloseFiles closes every file that the guest has opened for its host; nobody may be writing.
func (m *Machine) CloseFiles(ctx context.Context) error {
	_, err := m.link.ask(ctx, wire.Request{Close: &wire.Close{}})
	return err
}

// Gone says whether an error is only that the guest is not there any more.
func Gone(err error) bool { return errors.Is(err, ErrGone) }
