package fake

import (
	"bytes"
	"context"
	"io"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// CreatePages implements target.Target.
func (f *Fake) CreatePages(ctx context.Context, name string, size, sequence int64) error {
	op := Op{Method: "CreatePages", Name: name, Len: size, Sequence: sequence, Write: true}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		if err := firstError(target.CheckName(name), target.CheckSize(size), target.CheckSequence(sequence)); err != nil {
			return err
		}
		if st.exists(name) {
			return target.ErrExists
		}
		st.blobs[name] = &blob{content: newContent(size), sequence: sequence, etag: st.nextETag(), modified: st.now()}
		return nil
	}})
	return err
}

// Properties implements target.Target.
func (f *Fake) Properties(ctx context.Context, name, snapshotID string) (target.Properties, error) {
	var out target.Properties
	op := Op{Method: "Properties", Name: name, Snapshot: snapshotID, Sequence: -1}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		if _, err := st.at(name, snapshotID); err != nil {
			return err
		}
		b := st.blobs[name]
		if snapshotID == "" {
			out = target.Properties{Size: b.size, ETag: b.etag, Sequence: b.sequence, Leased: b.lease.inForce()}
			return nil
		}
		sn := b.snapshot(snapshotID)
		out = target.Properties{Size: sn.size, ETag: sn.etag, Sequence: sn.sequence, Metadata: sn.copyMetadata()}
		return nil
	}})
	return out, err
}

// PutPages implements target.Target.
func (f *Fake) PutPages(ctx context.Context, name string, off int64, data []byte, sum checksum.Sum, g target.Guard) error {
	_, err := f.do(ctx, call{
		Op:     Op{Method: "PutPages", Name: name, Off: off, Len: int64(len(data)), Lease: g.Lease, Sequence: g.Sequence, Write: true},
		in:     len(data),
		detach: func() { data = bytes.Clone(data) },
		apply: func(st *state, k Kind) error {
			if err := target.CheckPut(off, len(data)); err != nil {
				return err
			}
			if k == Corrupt || checksum.Of(data) != sum {
				return target.ErrChecksum
			}
			b, err := st.guarded(name, g)
			if err != nil {
				return err
			}
			if err := target.CheckPages(off, int64(len(data)), b.size); err != nil {
				return err
			}
			b.write(off, data)
			st.touch(b)
			return nil
		},
	})
	return err
}

// ClearPages implements target.Target.
func (f *Fake) ClearPages(ctx context.Context, name string, off, n int64, g target.Guard) error {
	op := Op{Method: "ClearPages", Name: name, Off: off, Len: n, Lease: g.Lease, Sequence: g.Sequence, Write: true}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		b, err := st.guarded(name, g)
		if err != nil {
			return err
		}
		if err := target.CheckPages(off, n, b.size); err != nil {
			return err
		}
		b.clear(off, n)
		st.touch(b)
		return nil
	}})
	return err
}

// ReadPages implements target.Target.
func (f *Fake) ReadPages(ctx context.Context, name, snapshotID string, off int64, p []byte) error {
	op := Op{Method: "ReadPages", Name: name, Snapshot: snapshotID, Off: off, Len: int64(len(p)), Sequence: -1}
	k, err := f.do(ctx, call{Op: op, out: len(p), apply: func(st *state, _ Kind) error {
		c, err := st.at(name, snapshotID)
		if err != nil {
			return err
		}
		if err := target.CheckWithin(off, int64(len(p)), c.size); err != nil {
			return err
		}
		c.read(off, p)
		return nil
	}})
	if err != nil {
		return err
	}
	switch {
	case k == Truncate:
		clear(p[len(p)/2:])
		return target.Refused("ReadPages", name, io.ErrUnexpectedEOF)
	case k == Corrupt && len(p) > 0:
		p[len(p)/2] ^= 1
	}
	return nil
}

// Ranges implements target.Target.
func (f *Fake) Ranges(ctx context.Context, name, snapshotID string, off, n int64) ([]target.ByteRange, error) {
	var out []target.ByteRange
	op := Op{Method: "Ranges", Name: name, Snapshot: snapshotID, Off: off, Len: n, Sequence: -1}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		c, err := st.at(name, snapshotID)
		if err != nil {
			return err
		}
		if err := target.CheckWithin(off, n, c.size); err != nil {
			return err
		}
		out = c.ranges(off, n)
		return nil
	}})
	return out, err
}

// Resize implements target.Target.
func (f *Fake) Resize(ctx context.Context, name string, size int64, g target.Guard) error {
	op := Op{Method: "Resize", Name: name, Len: size, Lease: g.Lease, Sequence: g.Sequence, Write: true}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		b, err := st.guarded(name, g)
		if err != nil {
			return err
		}
		if err := target.CheckSize(size); err != nil {
			return err
		}
		b.resize(size)
		st.touch(b)
		return nil
	}})
	return err
}
