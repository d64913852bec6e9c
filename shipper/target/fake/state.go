package fake

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// state is what the service holds. Names of objects and page blobs are one set.
type state struct {
	now     func() time.Time
	objects map[string]*object
	blobs   map[string]*blob
	etags   uint64    // the last one given out
	newest  time.Time // of the last snapshot
}

type object struct {
	data     []byte // never changed in place
	etag     string
	modified time.Time
}

type blob struct {
	content
	sequence  int64
	etag      string
	modified  time.Time
	lease     lease
	snapshots []*snapshot // oldest first
}

type snapshot struct {
	content
	id       string
	sequence int64
	etag     string
	metadata map[string]string
	time     time.Time
}

func newState(now func() time.Time) *state {
	return &state{now: now, objects: map[string]*object{}, blobs: map[string]*blob{}}
}

func (s *state) clone() *state {
	c := newState(s.now)
	c.etags, c.newest = s.etags, s.newest
	for name, o := range s.objects {
		copied := *o
		c.objects[name] = &copied
	}
	for name, b := range s.blobs {
		copied := *b
		copied.content = b.share()
		copied.snapshots = make([]*snapshot, len(b.snapshots))
		for i, sn := range b.snapshots {
			other := *sn
			other.content = sn.share()
			copied.snapshots[i] = &other
		}
		c.blobs[name] = &copied
	}
	return c
}

func (s *state) nextETag() string {
	s.etags++
	return fmt.Sprintf(`"0x8DF%013X"`, s.etags)
}

// nextSnapshotTime is the clock, but at least a millisecond after the last one:
// two snapshots within one would share their id (AZURE.md 4.1).
func (s *state) nextSnapshotTime() time.Time {
	t := s.now().UTC().Truncate(time.Millisecond)
	if !t.After(s.newest) {
		t = s.newest.Add(time.Millisecond)
	}
	s.newest = t
	return t
}

func (s *state) exists(name string) bool {
	return s.objects[name] != nil || s.blobs[name] != nil
}

func (s *state) putObject(name string, data []byte) string {
	o := &object{data: bytes.Clone(data), etag: s.nextETag(), modified: s.now()}
	s.objects[name] = o
	return o.etag
}

// blob is the page blob of the name, if the id may write to it.
func (s *state) blobFor(name, leaseID string) (*blob, error) {
	b := s.blobs[name]
	if b == nil {
		return nil, target.ErrNotFound
	}
	return b, b.lease.write(leaseID)
}

// guarded is the page blob of the name, if the guard lets the caller write.
func (s *state) guarded(name string, g target.Guard) (*blob, error) {
	b, err := s.blobFor(name, g.Lease)
	if err != nil {
		return nil, err
	}
	if g.Sequence >= 0 && g.Sequence != b.sequence {
		return nil, fmt.Errorf("%w: %d, not %d", target.ErrSequence, b.sequence, g.Sequence)
	}
	return b, nil
}

// touch gives the blob a new ETag.
func (s *state) touch(b *blob) {
	b.etag, b.modified = s.nextETag(), s.now()
}

func (b *blob) snapshot(id string) *snapshot {
	for _, sn := range b.snapshots {
		if sn.id == id {
			return sn
		}
	}
	return nil
}

// at is the content to read: the blob's own or that of a snapshot.
func (s *state) at(name, snapshotID string) (*content, error) {
	b := s.blobs[name]
	if b == nil {
		return nil, target.ErrNotFound
	}
	if snapshotID == "" {
		return &b.content, nil
	}
	if sn := b.snapshot(snapshotID); sn != nil {
		return &sn.content, nil
	}
	return nil, fmt.Errorf("%w: snapshot %s", target.ErrNotFound, snapshotID)
}

func (s *state) list(prefix string) []target.Item {
	var items []target.Item
	for name, o := range s.objects {
		items = append(items, target.Item{Name: name, Size: int64(len(o.data)), Modified: o.modified})
	}
	for name, b := range s.blobs {
		items = append(items, target.Item{Name: name, Size: b.size, Pages: true, Modified: b.modified})
	}
	items = slices.DeleteFunc(items, func(i target.Item) bool { return !strings.HasPrefix(i.Name, prefix) })
	slices.SortFunc(items, func(a, b target.Item) int { return strings.Compare(a.Name, b.Name) })
	return items
}

func (s *state) rot(name, snapshotID string, off int64) bool {
	if o := s.objects[name]; o != nil && off < int64(len(o.data)) {
		o.data = bytes.Clone(o.data)
		o.data[off] ^= 1
		return true
	}
	c, err := s.at(name, snapshotID)
	if err != nil || off >= c.size {
		return false
	}
	k := c.writable(off / chunkSize)
	k.data[off%chunkSize] ^= 1
	k.written[off%chunkSize/target.PageSize] = true
	return true
}

// freeze appends a snapshot of b.
func (s *state) freeze(b *blob, metadata map[string]string) *snapshot {
	t := s.nextSnapshotTime()
	sn := &snapshot{
		content:  b.share(),
		id:       t.Format("2006-01-02T15:04:05.0000000Z"),
		sequence: b.sequence,
		etag:     b.etag,
		metadata: maps.Clone(metadata),
		time:     t,
	}
	if len(metadata) > 0 {
		sn.etag = s.nextETag()
	}
	b.snapshots = append(b.snapshots, sn)
	return sn
}
