package cli

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// PointSpec says which recovery point is meant: one of the three, Latest if none of the others is set.
type PointSpec struct {
	// Generation and Epoch are set together, for an id.
	Generation, Epoch uint64
	// At asks for the newest point at or before it.
	At time.Time
}

// Latest reports whether the newest point is meant.
func (p PointSpec) Latest() bool { return p == PointSpec{} }

// String returns what the operator could have written.
func (p PointSpec) String() string {
	switch {
	case !p.At.IsZero():
		return p.At.UTC().Format(time.RFC3339Nano)
	case p.Latest():
		return "latest"
	default:
		return strconv.FormatUint(p.Generation, 10) + "-" + strconv.FormatUint(p.Epoch, 10)
	}
}

var pointID = regexp.MustCompile(`^([1-9][0-9]*)-([1-9][0-9]*)$`)

// timeForms are RFC 3339 and what people shorten it to. Without a zone a time is UTC, like every time vhdrelay prints.
var timeForms = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04"}

// ParsePoint parses latest, an id such as 1-12, or a time.
func ParsePoint(s string) (PointSpec, error) {
	if s == "latest" {
		return PointSpec{}, nil
	}
	if m := pointID.FindStringSubmatch(s); m != nil {
		generation, errG := strconv.ParseUint(m[1], 10, 64)
		epoch, errE := strconv.ParseUint(m[2], 10, 64)
		if errG == nil && errE == nil {
			return PointSpec{Generation: generation, Epoch: epoch}, nil
		}
	}
	for _, form := range timeForms {
		if t, err := time.Parse(form, s); err == nil && !t.IsZero() {
			return PointSpec{At: t}, nil
		}
	}
	return PointSpec{}, usagef("--point %q is neither latest, nor an id such as 1-12, nor a time such as 2026-03-01T08:00:00Z", s)
}

// splitDisk takes VM[/DISK] apart. A VM's name has no slash, a disk's may.
func splitDisk(s string) (vm, disk string, err error) {
	vm, disk, given := strings.Cut(s, "/")
	if vm == "" || given && disk == "" {
		return "", "", usagef("%q is not VM or VM/DISK", s)
	}
	return vm, disk, nil
}
