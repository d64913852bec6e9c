package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// metadata is what the items of the metadata region say.
type metadata struct {
	blockSize, virtual, sector int64
	fixed                      bool
	id                         guid
	link                       *image.Link
}

// items are the metadata items by id, and where each lies.
type items struct {
	b  map[guid][]byte
	at map[guid]image.FileOffset
}

func (v *view) metadata(region image.FileRange) (metadata, error) {
	it, err := v.items(region)
	if err != nil {
		return metadata{}, err
	}
	var m metadata
	flags := uint32(0)
	le := binary.LittleEndian
	for _, w := range []struct {
		name string
		id   guid
		size int
		take func(b []byte)
	}{
		{"file parameters", itemParameters, 8, func(b []byte) { m.blockSize, flags = int64(le.Uint32(b)), le.Uint32(b[4:]) }},
		{"virtual disk size", itemSize, 8, func(b []byte) { m.virtual = int64(le.Uint64(b)) }},
		{"logical sector size", itemLogical, 4, func(b []byte) { m.sector = int64(le.Uint32(b)) }},
		{"virtual disk id", itemID, 16, func(b []byte) { copy(m.id[:], b) }},
	} {
		b, ok := it.b[w.id]
		if !ok || len(b) < w.size {
			return metadata{}, fail(w.name, region.Start, fmt.Sprintf("%d bytes", len(b)), fmt.Sprintf("%d bytes", w.size), image.ErrInvalid)
		}
		w.take(b)
	}
	m.fixed = flags&flagLeaveAllocated != 0
	if err := m.check(it.at); err != nil {
		return metadata{}, err
	}
	if flags&flagHasParent == 0 {
		return m, nil
	}
	m.link, err = parseLocator(it.b[itemLocator], it.at[itemLocator])
	return m, err
}

// check holds the sizes against their limits.
func (m metadata) check(at map[guid]image.FileOffset) error {
	switch {
	case m.sector != 512 && m.sector != 4096:
		return fail("logical sector size", at[itemLogical], fmt.Sprint(m.sector), "512 or 4096", image.ErrInvalid)
	case m.blockSize < mebibyte || m.blockSize > 256*mebibyte || m.blockSize&(m.blockSize-1) != 0:
		return fail("block size", at[itemParameters], fmt.Sprint(m.blockSize), "a power of two from 1 to 256 MiB", image.ErrInvalid)
	case m.virtual <= 0 || m.virtual > maxVirtual || m.virtual%m.sector != 0:
		return fail("virtual disk size", at[itemSize], fmt.Sprint(m.virtual), "whole sectors, at most 64 TiB", image.ErrInvalid)
	}
	return nil
}

// items reads the metadata table and what it lists.
func (v *view) items(region image.FileRange) (items, error) {
	le := binary.LittleEndian
	b, err := image.ReadField(v, v.size, "metadata table", region.Start, tableSize)
	if err != nil {
		return items{}, err
	}
	if !bytes.HasPrefix(b, []byte("metadata")) {
		return items{}, fail("metadata signature", region.Start, fmt.Sprintf("%q", b[:8]), `"metadata"`, image.ErrMagic)
	}
	n := int(le.Uint16(b[10:]))
	if n > maxEntries {
		return items{}, fail("metadata entry count", region.Start+10, fmt.Sprint(n), fmt.Sprintf("at most %d", maxEntries), image.ErrInvalid)
	}
	it := items{map[guid][]byte{}, map[guid]image.FileOffset{}}
	for k := range n {
		e := b[32+k*tableEntry:]
		if err := v.item(&it, e, region, region.Start+image.FileOffset(32+k*tableEntry)); err != nil {
			return items{}, err
		}
	}
	return it, nil
}

func (v *view) item(it *items, e []byte, region image.FileRange, place image.FileOffset) error {
	le := binary.LittleEndian
	id, at, length := guid(e[:16]), int64(le.Uint32(e[16:])), int64(le.Uint32(e[20:]))
	switch id {
	case itemParameters, itemSize, itemID, itemLogical, itemPhysical, itemLocator:
	default:
		if le.Uint32(e[24:])&flagItemRequired != 0 {
			return fail("metadata item", place, id.String(), "an item that is understood", image.ErrFeature)
		}
		return nil
	}
	if length > maxItem || at < tableSize || at+length > int64(region.End-region.Start) {
		return fail("metadata item offset", place+16, fmt.Sprintf("%d bytes at %d", length, at), "at most 1 MiB, within the region", image.ErrInvalid)
	}
	if _, twice := it.b[id]; twice {
		return fail("metadata item", place, id.String()+" once more", "every item once", image.ErrInvalid)
	}
	b, err := image.ReadField(v, v.size, "metadata item", region.Start+image.FileOffset(at), length)
	it.b[id], it.at[id] = b, region.Start+image.FileOffset(at)
	return err
}

// parseLocator reads the keys and values that name the parent.
func parseLocator(b []byte, off image.FileOffset) (*image.Link, error) {
	le := binary.LittleEndian
	if len(b) < 20 {
		return nil, fail("parent locator", off, fmt.Sprintf("%d bytes", len(b)), "a parent locator, since the image has a parent", image.ErrInvalid)
	}
	if kind := guid(b[:16]); kind != locatorVHDX {
		return nil, fail("parent locator type", off, kind.String(), locatorVHDX.String(), image.ErrFeature)
	}
	l := &image.Link{}
	room := len(b) // for text: entries may all name the same bytes
	for k := range int(le.Uint16(b[18:])) {
		at := 20 + k*12
		key, ok1 := part(b, at, 0, 8)
		value, ok2 := part(b, at, 4, 10)
		if room -= len(key) + len(value); room < 0 {
			return nil, fail("parent locator entry", off+image.FileOffset(at), "more text than there is room for", fmt.Sprintf("keys and values within %d bytes", len(b)), image.ErrInvalid)
		}
		if !ok1 || !ok2 {
			return nil, fail("parent locator entry", off+image.FileOffset(at), "a key or value outside", fmt.Sprintf("within its %d bytes", len(b)), image.ErrInvalid)
		}
		switch key {
		case "parent_linkage", "parent_linkage2":
			g, ok := parseGUID(value)
			if !ok {
				return nil, fail("parent locator "+key, off+image.FileOffset(at), fmt.Sprintf("%q", value), "a GUID", image.ErrInvalid)
			}
			if key == "parent_linkage" {
				l.ID, l.IDAt = g, off+image.FileOffset(at)
			} else {
				l.ID2 = g
			}
		default:
			l.Locators = append(l.Locators, image.Locator{Kind: key, Path: value, At: off + image.FileOffset(at)})
		}
	}
	if l.ID == (guid{}) {
		return nil, fail("parent locator", off, "no parent_linkage", "the parent's DataWriteGuid", image.ErrInvalid)
	}
	return l, nil
}

// part is the text that the entry at names by the offset and the length in it.
func part(b []byte, at, offset, length int) (string, bool) {
	if at+12 > len(b) {
		return "", false
	}
	start, n := int64(binary.LittleEndian.Uint32(b[at+offset:])), int64(binary.LittleEndian.Uint16(b[at+length:]))
	if start+n > int64(len(b)) {
		return "", false
	}
	return text(b[start : start+n]), true
}
