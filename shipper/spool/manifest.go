package spool

import (
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// States of a disk in a manifest.
const (
	Complete = "complete" // the epoch has everything that changed on it
	Initial  = "initial"  // in initial replication: it makes no segments yet
)

// Manifest is what is durable of one epoch: with it, the epoch is in the spool.
type Manifest struct {
	Version    int // of the document; set by Commit
	VM, VMID   string
	Generation uint64
	Epoch      uint64 // never 0
	Previous   uint64 // the epoch before it in the VM's chain, 0 for none
	EpochUUID  string
	SealedAt   time.Time // UTC
	// Closed: a true state of the VM, to get a record. OpenReason says why not. An epoch that is closed may become open
	// by Update, never the other way.
	Closed     bool
	OpenReason string
	// RecordAttempted is durable before the first attempt to create the epoch's record: whoever gives the epoch up must
	// create that record as void first.
	RecordAttempted bool
	Uploaded        bool // all segments are durable at the target
	Disks           []ManifestDisk
}

// ManifestDisk is one disk of the VM at the seal.
type ManifestDisk struct {
	ID, Name    string
	Format      image.Format
	State       string // Complete or Initial
	VirtualSize int64  // bytes, at the seal
	FileSize    int64  // bytes of the image file, at the seal
	DiskSum     checksum.Sum
	Blocks      uint64      // number of the block table that the disk was read through, 0 if it needs none
	SumKnown    bool        // DiskSum is the CRC-64 of the virtual disk at the seal
	Segment     *SegmentRef // nil for an Initial disk, and for one on which nothing changed
}

// SegmentRef is a segment in the spool.
type SegmentRef struct {
	Name         string // of the file in the epoch's directory; set by Commit
	UUID         string
	Size         int64        // bytes
	Sum          checksum.Sum // CRC-64 of the file
	ChangedBytes int64
	StoredBytes  int64
}

// Clone returns a copy that shares nothing with m.
func (m *Manifest) Clone() *Manifest {
	c := *m
	c.Disks = slices.Clone(m.Disks)
	for i, d := range c.Disks {
		if d.Segment != nil {
			s := *d.Segment
			c.Disks[i].Segment = &s
		}
	}
	return &c
}

// Disk returns the disk with that id, nil if the epoch has none.
func (m *Manifest) Disk(id string) *ManifestDisk {
	for i := range m.Disks {
		if m.Disks[i].ID == id {
			return &m.Disks[i]
		}
	}
	return nil
}

// SegmentBytes returns the bytes of the epoch's segments.
func (m *Manifest) SegmentBytes() (n int64) {
	for _, d := range m.Disks {
		if d.Segment != nil {
			n += d.Segment.Size
		}
	}
	return n
}

func (m *Manifest) check() error {
	if m.Epoch == 0 || m.Previous >= m.Epoch {
		return fmt.Errorf("%w: epoch %d after %d", ErrManifest, m.Epoch, m.Previous)
	}
	seen := map[string]bool{}
	for _, d := range m.Disks {
		if seen[d.ID] || d.ID == "" {
			return fmt.Errorf("%w: disk id %q", ErrManifest, d.ID)
		}
		seen[d.ID] = true
		if d.State != Complete && (d.State != Initial || d.Segment != nil) {
			return fmt.Errorf("%w: disk %q is %q", ErrManifest, d.ID, d.State)
		}
		if s := d.Segment; s != nil && (s.Name != segmentName(d.ID) || s.Name != path.Base(s.Name) || s.Size <= 0) {
			return fmt.Errorf("%w: disk %q has segment %q of %d bytes", ErrManifest, d.ID, s.Name, s.Size)
		}
	}
	return nil
}

// onlyFlags says whether m and o differ in what Update may change and in nothing else.
func (m *Manifest) onlyFlags(o *Manifest) bool {
	a, b := m.Clone(), o.Clone()
	if !a.Closed && b.Closed || a.RecordAttempted && !b.RecordAttempted {
		return false
	}
	for _, c := range []*Manifest{a, b} {
		c.Closed, c.OpenReason, c.RecordAttempted, c.Uploaded = false, "", false, false
		c.SealedAt = c.SealedAt.UTC()
	}
	x, err := encodeManifest(a)
	y, err2 := encodeManifest(b)
	return err == nil && err2 == nil && slices.Equal(x, y)
}

// The manifest as it is in the file. The types above may grow methods and fields of their own; these are the format.
type manifestJSON struct {
	VM              string     `json:"vm"`
	VMID            string     `json:"vm_id"`
	Generation      uint64     `json:"generation"`
	Epoch           uint64     `json:"epoch"`
	Previous        uint64     `json:"previous"`
	EpochUUID       string     `json:"epoch_uuid"`
	SealedAt        time.Time  `json:"sealed_at"`
	Closed          bool       `json:"closed"`
	OpenReason      string     `json:"open_reason,omitempty"`
	RecordAttempted bool       `json:"record_attempted"`
	Uploaded        bool       `json:"uploaded"`
	Disks           []diskJSON `json:"disks"`
}

type diskJSON struct {
	ID          string       `json:"id"`
	Name        string       `json:"name"`
	Format      image.Format `json:"format"`
	State       string       `json:"state"`
	VirtualSize int64        `json:"virtual_size"`
	FileSize    int64        `json:"file_size"`
	Blocks      uint64       `json:"blocks,omitempty"`
	Sum         *hexSum      `json:"sum,omitempty"`
	Segment     *segmentJSON `json:"segment,omitempty"`
}

type segmentJSON struct {
	Name         string `json:"name"`
	UUID         string `json:"uuid"`
	Size         int64  `json:"size"`
	Sum          hexSum `json:"sum"`
	ChangedBytes int64  `json:"changed_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
}

func encodeManifest(m *Manifest) ([]byte, error) {
	j := manifestJSON{
		VM: m.VM, VMID: m.VMID, Generation: m.Generation, Epoch: m.Epoch, Previous: m.Previous, EpochUUID: m.EpochUUID,
		SealedAt: m.SealedAt.UTC(), Closed: m.Closed, OpenReason: m.OpenReason,
		RecordAttempted: m.RecordAttempted, Uploaded: m.Uploaded, Disks: make([]diskJSON, 0, len(m.Disks)),
	}
	for _, d := range m.Disks {
		e := diskJSON{ID: d.ID, Name: d.Name, Format: d.Format, State: d.State, VirtualSize: d.VirtualSize, FileSize: d.FileSize, Blocks: d.Blocks}
		if d.SumKnown {
			s := hexSum(d.DiskSum)
			e.Sum = &s
		}
		if s := d.Segment; s != nil {
			e.Segment = &segmentJSON{s.Name, s.UUID, s.Size, hexSum(s.Sum), s.ChangedBytes, s.StoredBytes}
		}
		j.Disks = append(j.Disks, e)
	}
	return encodeDocument(kindManifest, j)
}

func decodeManifest(data []byte) (*Manifest, error) {
	var j manifestJSON
	if err := decodeDocument(kindManifest, data, &j); err != nil {
		return nil, err
	}
	m := &Manifest{
		Version: documentVersion, VM: j.VM, VMID: j.VMID, Generation: j.Generation, Epoch: j.Epoch, Previous: j.Previous,
		EpochUUID: j.EpochUUID, SealedAt: j.SealedAt, Closed: j.Closed, OpenReason: j.OpenReason,
		RecordAttempted: j.RecordAttempted, Uploaded: j.Uploaded,
	}
	for _, e := range j.Disks {
		d := ManifestDisk{ID: e.ID, Name: e.Name, Format: e.Format, State: e.State, VirtualSize: e.VirtualSize, FileSize: e.FileSize, Blocks: e.Blocks}
		if e.Sum != nil {
			d.DiskSum, d.SumKnown = checksum.Sum(*e.Sum), true
		}
		if s := e.Segment; s != nil {
			d.Segment = &SegmentRef{s.Name, s.UUID, s.Size, checksum.Sum(s.Sum), s.ChangedBytes, s.StoredBytes}
		}
		m.Disks = append(m.Disks, d)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return m, nil
}
