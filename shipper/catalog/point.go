package catalog

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// PointID names an epoch of a VM at the target, and the recovery point it is if
// it has a record. The zero value is before every epoch.
type PointID struct{ Generation, Epoch uint64 }

// String is the form used in names, documents and by the operator: "1-12".
func (p PointID) String() string {
	return strconv.FormatUint(p.Generation, 10) + "-" + strconv.FormatUint(p.Epoch, 10)
}

// IsZero reports whether p stands for "none".
func (p PointID) IsZero() bool { return p == PointID{} }

// Compare orders by generation, then epoch.
func (p PointID) Compare(o PointID) int {
	return cmp.Or(cmp.Compare(p.Generation, o.Generation), cmp.Compare(p.Epoch, o.Epoch))
}

// Less reports whether p is older than o.
func (p PointID) Less(o PointID) bool { return p.Compare(o) < 0 }

// ParsePointID reads exactly what String writes.
func ParsePointID(s string) (PointID, error) {
	gen, epoch, ok := strings.Cut(s, "-")
	if ok {
		g, errG := strconv.ParseUint(gen, 10, 64)
		e, errE := strconv.ParseUint(epoch, 10, 64)
		if p := (PointID{g, e}); errG == nil && errE == nil && p.String() == s {
			return p, nil
		}
	}
	return PointID{}, fmt.Errorf("%w: %q is no point id (like 1-12)", ErrName, s)
}

// MarshalText makes documents carry String.
func (p PointID) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is the reverse.
func (p *PointID) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePointID(string(text))
	return err
}
