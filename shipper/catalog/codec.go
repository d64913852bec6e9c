package catalog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strconv"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// FormatSum is the form of a checksum in documents: 16 lower-case hex digits.
func FormatSum(s checksum.Sum) string { return fmt.Sprintf("%016x", uint64(s)) }

// ParseSum reads exactly what FormatSum writes.
func ParseSum(s string) (checksum.Sum, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || FormatSum(checksum.Sum(v)) != s {
		return 0, fmt.Errorf("%q is no checksum of 16 hex digits", s)
	}
	return checksum.Sum(v), nil
}

// checked is a document that can tell what is wrong with it, "" for nothing, and
// its newest version.
type checked interface {
	fault() string
	newest() int
}

func (d *VMDoc) newest() int { return vmVersion }

func (r *Record) newest() int { return FormatVersion }

func (p *Pin) newest() int { return FormatVersion }

// encode refuses what decode would.
func encode(doc checked) ([]byte, error) {
	if why := doc.fault(); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrMalformed, why)
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return append(data, '\n'), nil
}

// decode looks at the version first: what a newer one writes is no damage.
// Everything this version does not know is.
func decode(name string, data []byte, doc checked) error {
	var ladder struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &ladder); err != nil {
		return malformed(name, err.Error())
	}
	if ladder.Version > doc.newest() {
		return versionError(name, ladder.Version)
	}
	strict := json.NewDecoder(bytes.NewReader(data))
	strict.DisallowUnknownFields()
	if err := strict.Decode(doc); err != nil {
		return malformed(name, err.Error())
	}
	if _, err := strict.Token(); err != io.EOF {
		return malformed(name, "something follows the document")
	}
	if why := doc.fault(); why != "" {
		return malformed(name, why)
	}
	return nil
}

// firstFault returns the first complaint whose condition holds.
func firstFault(checks ...fault) string {
	for _, c := range checks {
		if c.bad {
			return c.why
		}
	}
	return ""
}

type fault struct {
	bad bool
	why string
}

func (d *VMDoc) fault() string {
	cuts := map[uint64]bool{}
	for _, c := range d.Cuts {
		if cuts[c.Generation] || c.Generation >= d.Generation {
			return fmt.Sprintf("cut of generation %d twice, or not of an older one", c.Generation)
		}
		cuts[c.Generation] = true
	}
	ids := map[string]bool{}
	for _, disk := range d.Disks {
		if ids[disk.ID] || disk.ID == "" || disk.Name == "" || disk.VirtualSize < 0 {
			return fmt.Sprintf("disk %q %q: id twice, or id, name or size missing", disk.ID, disk.Name)
		}
		ids[disk.ID] = true
	}
	for _, doubt := range d.Doubts {
		if why := doubt.fault(); why != "" {
			return why
		}
	}
	return firstFault(
		fault{d.Version != d.version(), "version " + strconv.Itoa(d.Version)},
		fault{d.Name == "", "no name"},
		fault{!isUUID(d.VMID), "vm_id is no UUID"},
		fault{d.Generation == 0, "generation 0"},
	)
}

// version is the lowest that has everything the document says.
func (d *VMDoc) version() int {
	if len(d.Doubts) > 0 {
		return vmVersion
	}
	return FormatVersion
}

func (d Doubt) fault() string {
	return firstFault(
		fault{d.DiskID == "" || d.Since.IsZero(), "doubt without disk or time"},
		fault{!d.Until.IsZero() && !d.From.Less(d.Until), "doubt that ends before it begins"},
	)
}

func (r *Record) fault() string {
	why := firstFault(
		fault{r.Version != FormatVersion, "version " + strconv.Itoa(r.Version)},
		fault{r.VM == "", "no vm"},
		fault{!isUUID(r.VMID), "vm_id is no UUID"},
		fault{r.Generation == 0 || r.Epoch == 0, "generation or epoch 0"},
		fault{!isUUID(r.EpochUUID), "epoch_uuid is no UUID"},
		fault{!r.Previous.Less(r.ID()), "previous is not older"},
		fault{r.Void && len(r.Disks)+len(r.Segments) > 0, "void, but with disks or segments"},
		fault{!r.Void && r.Time.IsZero(), "no time"},
	)
	for i := 0; why == "" && i < len(r.Disks); i++ {
		why = r.Disks[i].fault()
	}
	seen := map[string]bool{}
	for i := 0; why == "" && i < len(r.Segments); i++ {
		s := r.Segments[i]
		why = s.fault(r)
		if seen[s.Blob] {
			why = "segment " + s.Blob + " twice"
		}
		seen[s.Blob] = true
	}
	return why
}

func (d RecordDisk) fault() string {
	_, err := ParseSum(d.Sum)
	complete := d.State == StateComplete
	return firstFault(
		fault{d.ID == "" || d.Name == "", "disk without id or name"},
		fault{!complete && d.State != StateInitial, "disk " + d.Name + ": state " + strconv.Quote(d.State)},
		fault{d.VirtualSize < 0 || complete && d.VirtualSize == 0, "disk " + d.Name + ": no size"},
		fault{(complete || d.Sum != "") && err != nil, "disk " + d.Name + ": sum " + strconv.Quote(d.Sum)},
	)
}

func (s SegmentRef) fault(r *Record) string {
	_, err := ParseSum(s.Sum)
	return firstFault(
		fault{s.DiskID == "" || s.Blob == "" || path.IsAbs(s.Blob), "segment without disk or blob"},
		fault{err != nil, "segment " + s.Blob + ": sum " + strconv.Quote(s.Sum)},
		fault{!isUUID(s.UUID), "segment " + s.Blob + ": uuid"},
		fault{s.Size <= 0 || s.Size%512 != 0 || s.VirtualSize < 0, "segment " + s.Blob + ": size"},
		fault{!r.Previous.Less(s.ID()) || r.ID().Less(s.ID()), "segment " + s.Blob + ": epoch outside the record's"},
	)
}

func (p *Pin) fault() string {
	return firstFault(
		fault{p.Version != FormatVersion, "version " + strconv.Itoa(p.Version)},
		fault{p.ID == "" || p.VM == "", "no id or vm"},
		fault{p.Until.IsZero(), "no end"},
	)
}

func isUUID(s string) bool { return len(s) == 36 && uuid.Validate(s) == nil }
