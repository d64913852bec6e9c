package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// epoch2000 is second 0 of a VHD time stamp.
var epoch2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Image is an opened VHD: what it says of itself, and its block table as of that moment.
type Image struct {
	Info  image.Info
	Table *image.Table
	// Link says what a differencing image lies over; nil in the others.
	Link *image.Link

	r io.ReaderAt
}

// Disk returns the virtual disk; parent is needed for differencing images only, and must match Link.
func (i *Image) Disk(parent image.Parent) *image.Disk { return image.NewDisk(i.Table, i.r, parent) }

// Open reads the headers and the block table of a VHD of size bytes. It is strict. Errors are *image.Error without a
// path around image.ErrMagic (or ErrNotYet where the footer should be), ErrVersion, ErrChecksum, ErrTruncated,
// ErrFeature, ErrInvalid or the error of a read.
//
// A dynamic image whose last sector is no footer of it is opened by the copy at its start, with a note: its writer is just
// allocating a block, or died doing so.
func Open(r io.ReaderAt, size int64) (*Image, error) {
	f := file{r, size}
	footer, notes, err := f.footer()
	if err != nil {
		return nil, err
	}
	i := &Image{r: r, Info: image.Info{FileSize: size, VirtualSize: footer.CurrentSize, ID: footer.ID, Geometry: footer.Geometry,
		Creator: strings.TrimRight(string(footer.Creator[:]), "\x00 "), Created: footer.Created,
		QEMUSize: footer.QEMUSize(), Notes: notes}}
	if footer.Type == image.TypeFixed {
		return i, i.openFixed(footer)
	}
	i.Info.Format = image.VHDDynamic
	if footer.Type == image.TypeDifferencing {
		i.Info.Format = image.VHDDifferencing
	}
	h, err := f.header(footer)
	if err != nil {
		return nil, err
	}
	if footer.Type == image.TypeDifferencing {
		if i.Link, err = f.link(h); err != nil {
			return nil, err
		}
	}
	if i.Table, err = f.table(footer, h, i.Info); err != nil {
		return nil, err
	}
	return i, nil
}

// openFixed gives a fixed VHD the table of one block, so that it can be a parent like the others.
func (i *Image) openFixed(footer image.Footer) error {
	i.Info.Format = image.VHDFixed
	if got := i.Info.FileSize - image.FooterSize; got != footer.CurrentSize {
		return fail("current size", image.FileOffset(got)+48, fmt.Sprint(footer.CurrentSize), fmt.Sprint(got), image.ErrInvalid)
	}
	b := image.NewBuilder(image.Shape{Format: image.VHDFixed, VirtualSize: footer.CurrentSize, BlockSize: footer.CurrentSize, Sector: sectorSize,
		FileSize: i.Info.FileSize, Fixed: []image.FileRange{{Name: "footer", Start: image.FileOffset(footer.CurrentSize), End: image.FileOffset(i.Info.FileSize)}}})
	b.Full(0, 0)
	var err error
	i.Table, err = b.Table()
	return err
}

// footer returns the footer that counts: the last sector's if it belongs to this image, else the copy at the start.
func (f file) footer() (image.Footer, []string, error) {
	end := image.FileOffset(f.size - image.FooterSize)
	last, lastErr := f.footerAt(max(end, 0))
	first, firstErr := f.footerAt(0)
	copyGood := firstErr == nil && first.Type != image.TypeFixed
	switch {
	case lastErr == nil && last.Type == image.TypeFixed && !copyGood, lastErr == nil && last.Type != image.TypeFixed && !copyGood:
		var notes []string
		if last.Type != image.TypeFixed {
			notes = append(notes, "the copy of the footer at the start of the file is damaged")
		}
		return last, notes, nil
	case lastErr == nil && last.ID == first.ID && last.Type == first.Type:
		var notes []string
		if last.CurrentSize != first.CurrentSize {
			notes = append(notes, fmt.Sprintf("the footer says %d bytes, its copy at the start %d", last.CurrentSize, first.CurrentSize))
		}
		return last, notes, nil
	case copyGood:
		return first, []string{"the file does not end in its footer: the copy at its start is used"}, nil
	}
	return image.Footer{}, nil, lastErr
}

func (f file) footerAt(off image.FileOffset) (image.Footer, error) {
	b, err := f.read("footer", off, image.FooterSize)
	if err != nil {
		return image.Footer{}, err
	}
	footer, err := image.ParseFooter(b)
	if e := (*image.Error)(nil); errors.As(err, &e) {
		moved := *e
		moved.Offset += off
		return image.Footer{}, &moved
	}
	return footer, err
}

// header reads and checks the dynamic header, and that the file can hold the table it speaks of.
func (f file) header(footer image.Footer) (header, error) {
	at := image.FileOffset(footer.DataOffset)
	b, err := f.read("header", at, headerSize)
	if err != nil {
		return header{}, err
	}
	h, err := parseHeader(b)
	if e := (*image.Error)(nil); errors.As(err, &e) {
		moved := *e
		moved.Offset += at
		return header{}, &moved
	}
	h.at = at
	if h.entries > maxEntries {
		return header{}, fail("max table entries", at+offEntries, fmt.Sprint(h.entries), fmt.Sprintf("at most %d", maxEntries), image.ErrInvalid)
	}
	if need := (footer.CurrentSize-1)/h.blockSize + 1; h.entries < need {
		return header{}, fail("max table entries", at+offEntries, fmt.Sprint(h.entries), fmt.Sprintf("at least %d for %d bytes", need, footer.CurrentSize), image.ErrInvalid)
	}
	return h, nil
}

// link reads the parent locators. A locator that cannot be read is left out if another is left: each is but one way.
func (f file) link(h header) (*image.Link, error) {
	l := &image.Link{ID: h.parentID, IDAt: h.at + offParentID, TimeAt: h.at + offParentTime}
	if h.time != 0 {
		l.Time = epoch2000.Add(time.Duration(h.time) * time.Second)
	}
	var first error
	for i, loc := range h.locators {
		if loc.kind == "" || loc.length == 0 {
			continue
		}
		text, err := f.locator(loc)
		if err != nil {
			first = errors.Join(first, err)
			continue
		}
		l.Locators = append(l.Locators, image.Locator{Kind: loc.kind, Path: text, At: h.at + image.FileOffset(offLocators+i*locatorSize)})
	}
	if h.name != "" {
		l.Locators = append(l.Locators, image.Locator{Kind: "name", Path: h.name, At: h.at + offParentName})
	}
	if len(l.Locators) == 0 && first != nil {
		return nil, first
	}
	return l, nil
}

func (f file) locator(l locator) (string, error) {
	if l.length > maxLocator {
		return "", fail("parent locator "+l.kind, l.offset, fmt.Sprintf("%d bytes", l.length), fmt.Sprintf("at most %d", maxLocator), image.ErrInvalid)
	}
	b, err := f.read("parent locator "+l.kind, l.offset, l.length)
	if err != nil {
		return "", err
	}
	switch l.kind {
	case "W2ru", "W2ku":
		return utf16Text(b, binary.LittleEndian), nil
	}
	return strings.TrimRight(string(b), "\x00"), nil
}
