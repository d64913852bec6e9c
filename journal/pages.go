package journal

import (
	"encoding/binary"
	"fmt"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// A change set is stored page by page. A page is
//
//	+-----+----------------------------------------+
//	| 1   | uvarint gap, uvarint length, …         |   runs, in blocks, or, where longer than the bitmap,
//	+-----+----------------------------------------+
//	| 2   | 4096 bytes, bit i of byte j = block 8j+i |
//	+-----+----------------------------------------+
//
// These numbers are part of the format: never change them.
const (
	setPageBlocks = 1 << 15
	setPageBytes  = setPageBlocks / 8
	tagRuns       = 1
	tagBits       = 2
)

type blockRange = extent.Range[extent.FileBlock]
type blockMap = extent.Bitmap[extent.FileBlock]

// encodePage returns the stored form of page n of m, nil if it is empty.
func encodePage(m *blockMap, n int64) []byte {
	page := blockRange{Start: extent.FileBlock(n * setPageBlocks), End: extent.FileBlock((n + 1) * setPageBlocks)}
	out := []byte{tagRuns}
	at := page.Start
	for run := range m.Ranges(page, 0) {
		out = binary.AppendUvarint(out, uint64(run.Start-at))
		out = binary.AppendUvarint(out, uint64(run.Len()))
		at = run.End
	}
	if len(out) == 1 {
		return nil
	}
	if len(out) <= 1+setPageBytes {
		return out
	}
	out = append([]byte{tagBits}, make([]byte, setPageBytes)...)
	for run := range m.Ranges(page, 0) {
		for b := run.Start - page.Start; b < run.End-page.Start; b++ {
			out[1+b/8] |= 1 << (b % 8)
		}
	}
	return out
}

// decodePage adds the blocks of stored page n to m.
func decodePage(m *blockMap, n int64, raw []byte) error {
	start := extent.FileBlock(n * setPageBlocks)
	if len(raw) == 1+setPageBytes && raw[0] == tagBits {
		for i := range extent.FileBlock(setPageBlocks) {
			if raw[1+i/8]>>(i%8)&1 != 0 {
				m.Set(blockRange{Start: start + i, End: start + i + 1})
			}
		}
		return nil
	}
	if len(raw) < 2 || raw[0] != tagRuns {
		return fmt.Errorf("%w: page %d of a change set", ErrFormat, n)
	}
	return decodeRuns(m, n, raw[1:])
}

func decodeRuns(m *blockMap, n int64, raw []byte) error {
	var at uint64
	for len(raw) > 0 {
		gap, k := binary.Uvarint(raw)
		length, l := binary.Uvarint(raw[max(k, 0):])
		end := at + gap + length
		if k <= 0 || l <= 0 || length == 0 || gap > setPageBlocks || length > setPageBlocks || end > setPageBlocks {
			return fmt.Errorf("%w: runs of page %d of a change set", ErrFormat, n)
		}
		start := extent.FileBlock(n * setPageBlocks)
		m.Set(blockRange{Start: start + extent.FileBlock(at+gap), End: start + extent.FileBlock(end)})
		at, raw = end, raw[k+l:]
	}
	return nil
}

// writeSet replaces the stored change set of a disk by m.
func writeSet(s kv.Store, disk string, m *blockMap) error {
	if err := deletePrefix(s, preSet+disk+"/"); err != nil {
		return err
	}
	c := chunks{store: s}
	for n := int64(0); n*setPageBlocks < int64(m.End()); n++ {
		if page := encodePage(m, n); page != nil {
			if err := c.put(numberedKey(preSet, disk, n), page); err != nil {
				return fmt.Errorf("write change set: %w", err)
			}
		}
	}
	if err := c.flush(); err != nil {
		return fmt.Errorf("write change set: %w", err)
	}
	return nil
}

// readSet adds the stored change set of a disk to m.
func readSet(s kv.Store, disk string, m *blockMap) error {
	prefix := preSet + disk + "/"
	return s.Scan([]byte(prefix), func(k, v []byte) error {
		n, err := keyNumber(k, len(prefix))
		if err != nil {
			return err
		}
		return decodePage(m, n, v)
	})
}
