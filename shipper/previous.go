package shipper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// previous is what the entries of a translated disk's checksum table were read through: the images of its chain, the
// leaf first, with their block tables. An image without a parent is a chain of one.
type previous struct {
	at    time.Time      // when they were looked at
	marks chain.Identity // of the members
	// files are the members' ids in the change log; "" for one that nobody tracks, or whose change set says less than what
	// was written since.
	files []string
	chain *chain.Chain // Members with their tables, closed
}

// An encoded previous, all numbers little-endian. Never change.
//
//	0  magic "vhdrchn1"                       8
//	8  length of the description              4
//	12 the description, JSON: previousHead
//	   for each member its table, as image.Table encodes it
//	   CRC-64/NVME of all before, big-endian  8
//
// What is there from before chains were known is one table and its checksum.
const previousMagic = "vhdrchn1"

type previousHead struct {
	At      time.Time      `json:"at"`
	Members []previousMark `json:"members"`
}

type previousMark struct {
	chain.Mark
	File  string `json:"file,omitempty"`
	Table int    `json:"table"` // bytes of its encoded table
}

// encode is what the file of it holds.
func (p *previous) encode() ([]byte, error) {
	head, tables := previousHead{At: p.at}, []byte(nil)
	for i, m := range p.chain.Members {
		was := len(tables)
		var err error
		if tables, err = m.Table.AppendBinary(tables); err != nil {
			return nil, err
		}
		head.Members = append(head.Members, previousMark{p.marks[i], p.files[i], len(tables) - was})
	}
	text, err := json.Marshal(head)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint32([]byte(previousMagic), uint32(len(text)))
	b = append(append(b, text...), tables...)
	return binary.BigEndian.AppendUint64(b, uint64(checksum.Of(b))), nil
}

// decodePrevious reads the file of one. ErrBlockTable, ErrVersion.
func decodePrevious(b []byte) (*previous, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: %d bytes", ErrBlockTable, len(b))
	}
	body, sum := b[:len(b)-8], binary.BigEndian.Uint64(b[len(b)-8:])
	p, err := decodeMembers(body)
	if errors.Is(err, image.ErrVersion) {
		return nil, fmt.Errorf("%w: %w", ErrVersion, err)
	}
	if uint64(checksum.Of(body)) != sum {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrBlockTable)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBlockTable, err)
	}
	return p, nil
}

func decodeMembers(body []byte) (*previous, error) {
	if len(body) < 12 || string(body[:8]) != previousMagic {
		t, err := image.DecodeTable(body)
		if err != nil {
			return nil, err
		}
		return &previous{marks: make(chain.Identity, 1), files: []string{""}, chain: closed(t)}, nil
	}
	size, rest := int64(binary.LittleEndian.Uint32(body[8:])), body[12:]
	if size > int64(len(rest)) {
		return nil, fmt.Errorf("a description of %d bytes in %d", size, len(rest))
	}
	var head previousHead
	if err := json.Unmarshal(rest[:size], &head); err != nil {
		return nil, err
	}
	rest = rest[size:]
	p := &previous{at: head.At, chain: closed()}
	for _, m := range head.Members {
		if m.Table < 0 || m.Table > len(rest) {
			return nil, fmt.Errorf("a table of %d bytes in %d", m.Table, len(rest))
		}
		t, err := image.DecodeTable(rest[:m.Table])
		if err != nil {
			return nil, err
		}
		rest = rest[m.Table:]
		p.add(m.Mark, m.File, t)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes behind the last table", len(rest))
	}
	return p, nil
}

// closed is a chain of tables that nobody can read through.
func closed(tables ...*image.Table) *chain.Chain {
	c := &chain.Chain{}
	for _, t := range tables {
		c.Members = append(c.Members, chain.Member{Table: t})
	}
	return c
}

func (p *previous) add(mark chain.Mark, file string, t *image.Table) {
	p.marks, p.files = append(p.marks, mark), append(p.files, file)
	p.chain.Members = append(p.chain.Members, chain.Member{Name: mark.Name, Stat: mark.Stat, Table: t})
}

// virtualSize is that of the leaf, in bytes; 0 if there is none.
func (p *previous) virtualSize() int64 {
	if p == nil || len(p.chain.Members) == 0 {
		return 0
	}
	return p.chain.Members[0].Table.VirtualSize
}

// same tells whether nothing is to be written anew for p.
func (p *previous) same(o *previous) bool {
	if o == nil || len(p.marks) != len(o.marks) {
		return false
	}
	for i, m := range p.marks {
		if !m.Stat.SameFile(o.marks[i].Stat) || p.files[i] != o.files[i] || m.Name != o.marks[i].Name || m.ID != o.marks[i].ID ||
			!p.chain.Members[i].Table.Equal(o.chain.Members[i].Table) {
			return false
		}
	}
	return true
}

// know gives a table from before chains were known the identity of the image that it was of.
func (d *disk) know(p *previous, leaf chain.Member, file string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(p.marks) == 1 && p.marks[0].Stat.Inode == 0 {
		p.marks[0].Stat, p.files[0], p.chain.Members[0].Stat = leaf.Stat, file, leaf.Stat
	}
}

// has tells whether a file was one of the members, and which.
func (p *previous) has(st chain.Stat) (int, bool) {
	if p != nil {
		for i, m := range p.marks {
			if m.Stat.SameFile(st) {
				return i, true
			}
		}
	}
	return 0, false
}

// Layout says where the image of a disk has its blocks; image.Layout is one, and what a comparison needs.
type Layout interface {
	Disk() DiskRange
	DiskBlocks(FileRange) extent.Set[extent.DiskBlock]
	FileBlocks(DiskRange) extent.Set[extent.FileBlock]
	CutOff(FileRange) FileRange
	Metadata() []FileRange
	ReadDisk(src io.ReaderAt, run DiskRange, p []byte) error
}

// chainLayout is the layout of a disk whose image lies over others: of the leaf, but it reads what is below as well.
type chainLayout struct {
	image.Layout
	prev  *previous
	files *files
}

// ReadDisk implements Layout; the leaf is found like the others.
func (l chainLayout) ReadDisk(_ io.ReaderAt, run DiskRange, p []byte) error {
	clear(p)
	open := map[int]io.ReaderAt{}
	defer func() {
		for _, r := range open {
			if c, ok := r.(chain.File); ok {
				c.Close() // it was only read
			}
		}
	}()
	for e := range l.prev.chain.Extents(image.DiskOffset(run.Offset()), int64(len(p))) {
		if e.From != image.FromFile {
			continue
		}
		if open[e.Member] == nil {
			r, err := l.files.reader(l.prev.marks[e.Member])
			if err != nil {
				return err
			}
			open[e.Member] = r
		}
		at := int64(e.Disk) - run.Offset()
		n, err := open[e.Member].ReadAt(p[at:at+e.Len], int64(e.File))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(p[at+int64(n) : at+e.Len])
	}
	return nil
}
