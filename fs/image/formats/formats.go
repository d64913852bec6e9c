// Package formats opens every image that has a block table by its content, and says of every image what it is and whether
// it is protected. It is a leaf over the readers of the single formats: it only reads, and a crash leaves nothing of it.
package formats

import (
	"errors"
	"fmt"
	"io"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/vhd"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
)

// Image is an opened image and its block table as of that moment.
type Image struct {
	Info  image.Info
	Table *image.Table
	Link  *image.Link // what a differencing image lies over
	// Disk reads the virtual disk through the table, with what a log has for it. It keeps the reader that the image was
	// opened over.
	Disk io.ReaderAt
}

// Open opens a VHD or VHDX of size bytes. Errors are those of vhd.Open and vhdx.Open: an image that somebody is writing to may
// contradict itself for a moment.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	head, err := image.ReadField(r, size, "signature", 0, 8)
	if err != nil {
		return nil, err
	}
	if string(head) == "vhdxfile" {
		i, err := vhdx.Open(r, size)
		if err != nil {
			return nil, err
		}
		return &Image{i.Info, i.Table, i.Link, i.Disk(nil)}, nil
	}
	i, err := vhd.Open(r, size)
	if err != nil {
		return nil, err
	}
	return &Image{i.Info, i.Table, i.Link, i.Disk(nil)}, nil
}

// Probe is image.Probe for all formats: what has a block table is protected as well. Whether what a differencing image lies over
// is there is not looked at: see package chain.
func Probe(name string, r io.ReaderAt, size int64) (image.Info, error) {
	info, err := image.Probe(name, r, size)
	if !errors.Is(err, image.ErrUnsupported) || info.Format != image.VHDX && !info.Format.Translated() {
		return info, err
	}
	i, openErr := Open(r, size)
	if openErr != nil {
		info.FileSize = size
		return info, notYet(name, openErr)
	}
	i.Info.FileSize = size
	return i.Info, nil
}

// notYet names the file in an error of a reader, and says of an image that contradicts itself that it is to be looked at
// again: somebody may be making it, or be in the middle of a change.
func notYet(name string, err error) error {
	e := (*image.Error)(nil)
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", name, err)
	}
	c := *e
	c.Path = name
	if errors.Is(err, image.ErrInvalid) && !errors.Is(err, image.ErrVersion) {
		c.Err = fmt.Errorf("%w: %w", image.ErrNotYet, e.Err)
	}
	return &c
}
