package vhdx

import (
	"bytes"
	"encoding/binary"

	"fmt"
	"io"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Image is an opened VHDX: what it says of itself, and its block table as of that moment, the log replayed.
type Image struct {
	Info  image.Info
	Table *image.Table
	// Link says what a differencing image lies over; nil in the others.
	Link *image.Link
	// DataWrite changes at the first write of a guest after each opening; a child's Link names it. In the order of the file.
	DataWrite [16]byte
	// Replayed is how many entries of a log were replayed in memory.
	Replayed int

	v *view
}

// Disk returns the virtual disk; parent is needed for differencing images only, and its DataWrite must match Link.
func (i *Image) Disk(parent image.Parent) *image.Disk { return image.NewDisk(i.Table, i.v, parent) }

// Open reads the headers, replays the log in memory, and reads the block table of a VHDX of size bytes. It is strict.
// Errors are *image.Error without a path around image.ErrMagic, ErrVersion, ErrChecksum, ErrTruncated, ErrFeature,
// ErrInvalid or the error of a read.
//
// A header that names a log in which no entry is valid is no error but a note: so it looks between the two steps in which
// a writer begins a log, and nothing was written in place before its entry was whole.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	b, err := image.ReadField(r, size, "signature", 0, int64(len(signature)))
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(b, []byte(signature)) {
		return nil, fail("signature", 0, fmt.Sprintf("%q", b), fmt.Sprintf("%q", signature), image.ErrMagic)
	}
	h, err := newestHeader(r, size)
	if err != nil {
		return nil, err
	}
	i := &Image{DataWrite: h.dataWrite, v: newView(r, size), Info: image.Info{FileSize: size}}
	if h.logGUID != (guid{}) {
		if i.Replayed, err = i.v.replay(h); err != nil {
			return nil, err
		}
		if i.Replayed == 0 {
			i.Info.Notes = append(i.Info.Notes, "the header names a log, and no entry of it is valid: nothing was replayed")
		}
	}
	regions, err := i.v.regions()
	if err != nil {
		return nil, err
	}
	m, err := i.v.metadata(regions.metadata)
	if err != nil {
		return nil, err
	}
	i.describe(m)
	i.Table, err = i.v.table(h, regions, m, i.Info.Format)
	if err != nil {
		return nil, err
	}
	return i, nil
}

func (i *Image) describe(m metadata) {
	i.Info.VirtualSize, i.Info.ID, i.Link = m.virtual, swapped(m.id), m.link
	switch {
	case m.link != nil:
		i.Info.Format = image.VHDXDifferencing
	case m.fixed:
		i.Info.Format = image.VHDXFixed
	default:
		i.Info.Format = image.VHDXDynamic
	}
}

// newestHeader is the valid header with the higher sequence number; if none is valid, why the first is not.
func newestHeader(r io.ReaderAt, size int64) (header, error) {
	var best header
	var first error
	found := false
	for _, off := range []image.FileOffset{headerAt, otherHeaderAt} {
		b, err := image.ReadField(r, size, "header", off, headerSize)
		var h header
		if err == nil {
			h, err = parseHeader(b, off)
		}
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if !found || h.sequence > best.sequence {
			best, found = h, true
		}
	}
	if !found {
		return header{}, first
	}
	return best, nil
}

type regions struct{ table, metadata image.FileRange }

// regions reads the region table, or its copy if the first is damaged.
func (v *view) regions() (regions, error) {
	var first error
	for _, off := range []image.FileOffset{regionAt, otherRegionAt} {
		b, err := image.ReadField(v, v.fileSize, "region table", off, tableSize)
		if err == nil {
			err = checkStructure("region table", "regi", b, off)
		}
		if err == nil {
			return v.parseRegions(b, off)
		}
		if first == nil {
			first = err
		}
	}
	return regions{}, first
}

func (v *view) parseRegions(b []byte, off image.FileOffset) (found regions, err error) {
	le := binary.LittleEndian
	n := le.Uint32(b[8:])
	if n > maxEntries {
		return regions{}, fail("region table entry count", off+8, fmt.Sprint(n), fmt.Sprintf("at most %d", maxEntries), image.ErrInvalid)
	}
	for k := range int(n) {
		e := b[16+k*tableEntry:]
		at, length := le.Uint64(e[16:]), int64(le.Uint32(e[24:]))
		place := off + image.FileOffset(16+k*tableEntry)
		var into *image.FileRange
		switch id := guid(e[:16]); {
		case id == regionTable:
			into = &found.table
		case id == regionMetadata:
			into = &found.metadata
		case le.Uint32(e[28:])&flagRegionRequired != 0:
			return regions{}, fail("region", place, id.String(), "a region that is understood", image.ErrFeature)
		default:
			continue
		}
		if at%mebibyte != 0 || at < reservedTop || length == 0 || length%mebibyte != 0 || at > 1<<62 {
			return regions{}, fail("region offset", place+16, fmt.Sprintf("%d bytes at %d", length, at), "whole MiB behind the headers", image.ErrInvalid)
		}
		if at+uint64(length) > uint64(v.fileSize) {
			return regions{}, fail("region offset", place+16, fmt.Sprintf("%d bytes at %d", length, at), fmt.Sprintf("within the %d bytes of the file", v.fileSize), image.ErrTruncated)
		}
		*into = span("region", image.FileOffset(at), length)
	}
	found.table.Name, found.metadata.Name = "block table", "metadata"
	if found.table.End == 0 || found.metadata.End == 0 {
		return regions{}, fail("region table", off, "no block table or no metadata", "both", image.ErrInvalid)
	}
	return found, nil
}

func newView(r io.ReaderAt, size int64) *view {
	return &view{r: r, fileSize: size, size: size, pages: map[extent.FileBlock][]byte{}}
}
