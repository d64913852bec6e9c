package badgerkv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	sst "github.com/dgraph-io/badger/v4/table"
)

// ErrDamaged: the database's files are not what was written to them. No crash does that; a disk does.
var ErrDamaged error = damageError{}

type damageError struct{}

func (damageError) Error() string { return "the journal store is damaged" }

// ErrorCode and ErrorAction are for the operator (I12).
func (damageError) ErrorCode() string { return "journal-damaged" }

// ErrorAction is the next action.
func (damageError) ErrorAction() string {
	return "look at the disk of the state directory; then stop vhdrelay, move the directory \"journal\" in the state directory away and start vhdrelay: " +
		"every disk is compared with its replica, and nothing is sent that the target has"
}

// proven reads every table that the database has and proves its checksums. Badger itself panics or ends the process over an
// index that it cannot read, in a goroutine of its own, and drops a block that it cannot read without a word; a table that is
// damaged must be an error before it sees it. A database that was not made yet is in order.
func proven(dir string) error {
	tables, err := tablesOf(dir)
	if err != nil {
		return err
	}
	for id := range tables {
		path := sst.NewFilename(id, dir)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: table %s is missing", ErrDamaged, path)
		}
		if err != nil {
			return err
		}
		if err := provenTable(data); err != nil {
			return fmt.Errorf("%w: table %s: %w", ErrDamaged, path, err)
		}
	}
	return nil
}

// tablesOf reads the list of tables.
func tablesOf(dir string) (map[uint64]badger.TableManifest, error) {
	path := filepath.Join(dir, badger.ManifestFilename)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, f); err != nil {
		return nil, err // Badger would call it rotten
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	manifest, _, err := badger.ReplayManifestFile(f, 0, badger.Options{})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	return manifest.Tables, nil
}

// What is wrong with a table.
var (
	errShort    = errors.New("it is cut short")
	errIndex    = errors.New("the index is not readable")
	errChecksum = errors.New("a checksum is wrong")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// provenTable proves the index of a table and every block. A table is
//
//	block … block | index | length of the index | its checksum | length of the checksum
//
// and a block is data that ends with a checksum of what is before it and the checksum's length; lengths are 4 bytes, big
// endian (table/builder.go of Badger v4).
func provenTable(data []byte) error {
	index, rest, err := cutSummed(data, true)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	blocks, err := blocksOf(index)
	if err != nil {
		return err
	}
	for _, b := range blocks {
		if b.from+b.n > len(rest) || b.from+b.n < b.from {
			return errShort
		}
		if _, _, err := cutSummed(rest[b.from:b.from+b.n], false); err != nil {
			return fmt.Errorf("block at %d: %w", b.from, err)
		}
	}
	return nil
}

// cutSummed takes what a checksum at the end of data is of, and returns what is before it. sized: its length stands between
// it and the checksum; else it is all of data.
func cutSummed(data []byte, sized bool) (what, rest []byte, err error) {
	sum, data, err := cutSized(data)
	if err != nil {
		return nil, nil, err
	}
	what = data
	if sized {
		if what, rest, err = cutSized(data); err != nil {
			return nil, nil, err
		}
	}
	want, err := parseChecksum(sum)
	if err == nil && want != uint64(crc32.Checksum(what, castagnoli)) {
		err = errChecksum
	}
	return what, rest, err
}

// cutSized takes a stretch off the end of data whose length stands behind it.
func cutSized(data []byte) (what, rest []byte, err error) {
	if len(data) < 4 {
		return nil, nil, errShort
	}
	n := int64(binary.BigEndian.Uint32(data[len(data)-4:]))
	data = data[:len(data)-4]
	if n > int64(len(data)) {
		return nil, nil, errShort
	}
	return data[len(data)-int(n):], data[:len(data)-int(n)], nil
}

// parseChecksum reads Badger's message Checksum: field 1 the algorithm, absent for CRC-32C, which is the only one that it
// writes; field 2 the sum, absent if it is 0. Both are varints.
func parseChecksum(p []byte) (sum uint64, err error) {
	for len(p) > 0 {
		v, n := binary.Uvarint(p[1:])
		if n <= 0 {
			return 0, errChecksum
		}
		switch tag := p[0]; {
		case tag == 1<<3 && v == 0:
		case tag == 2<<3:
			sum = v
		default:
			return 0, errChecksum
		}
		p = p[1+n:]
	}
	return sum, nil
}

// stretch is n bytes of a table.
type stretch struct{ from, n int }

// blocksOf reads where the blocks of a table are, from an index whose checksum is right.
func blocksOf(index []byte) (blocks []stretch, err error) {
	defer func() {
		if recover() != nil { // flatbuffers has no errors: it slices, and a sum that is right by chance proves no index
			blocks, err = nil, errIndex
		}
	}()
	root := fb.GetRootAsTableIndex(index, 0)
	n := root.OffsetsLength()
	if n == 0 {
		return nil, errIndex
	}
	for i := range n {
		var o fb.BlockOffset
		if !root.Offsets(&o, i) || len(o.KeyBytes()) == 0 {
			return nil, errIndex
		}
		blocks = append(blocks, stretch{int(o.Offset()), int(o.Len())})
	}
	return blocks, nil
}
