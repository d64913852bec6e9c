package fake

import (
	"context"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Sum implements target.Target.
func (f *Fake) Sum(ctx context.Context, name, snapshotID string, off, n int64) (checksum.Sum, error) {
	var sum checksum.Sum
	op := Op{Method: "Sum", Name: name, Snapshot: snapshotID, Off: off, Len: n, Sequence: -1}
	k, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		c, err := st.at(name, snapshotID)
		if err != nil {
			return err
		}
		if err := target.CheckSum(off, n, c.size); err != nil {
			return err
		}
		p := make([]byte, n)
		c.read(off, p)
		sum = checksum.Of(p)
		return nil
	}})
	if k == Corrupt {
		sum ^= 1
	}
	return sum, err
}
