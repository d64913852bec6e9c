package fake

import (
	"context"
	"maps"
	"slices"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// SetSequence implements target.Target.
func (f *Fake) SetSequence(ctx context.Context, name string, sequence int64, lease, ifMatch string) (string, error) {
	var etag string
	op := Op{Method: "SetSequence", Name: name, Lease: lease, Sequence: sequence, Write: true}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		b, err := st.blobFor(name, lease)
		if err != nil {
			return err
		}
		if err := firstError(target.CheckSequence(sequence), b.matches(ifMatch)); err != nil {
			return err
		}
		b.sequence = sequence
		st.touch(b)
		etag = b.etag
		return nil
	}})
	if err != nil {
		return "", err
	}
	return etag, nil
}

func (b *blob) matches(etag string) error {
	if etag != "" && etag != b.etag {
		return target.ErrCondition
	}
	return nil
}

// Snapshot implements target.Target. Without a lease id a lease is ignored
// (AZURE.md 1.3).
func (f *Fake) Snapshot(ctx context.Context, name, lease, ifMatch string, metadata map[string]string) (string, error) {
	var id string
	op := Op{Method: "Snapshot", Name: name, Lease: lease, Sequence: -1, Write: true}
	detach := func() { metadata = maps.Clone(metadata) }
	_, err := f.do(ctx, call{Op: op, detach: detach, apply: func(st *state, _ Kind) error {
		b := st.blobs[name]
		if b == nil {
			return target.ErrNotFound
		}
		if err := firstError(target.CheckMetadata(metadata), b.matches(ifMatch)); err != nil {
			return err
		}
		if lease != "" {
			if err := b.lease.write(lease); err != nil {
				return err
			}
		}
		id = st.freeze(b, metadata).id
		return nil
	}})
	if err != nil {
		return "", err
	}
	return id, nil
}

// copyMetadata is never nil.
func (sn *snapshot) copyMetadata() map[string]string {
	m := make(map[string]string, len(sn.metadata))
	maps.Copy(m, sn.metadata)
	return m
}

// Snapshots implements target.Target.
func (f *Fake) Snapshots(ctx context.Context, name string) ([]target.SnapshotInfo, error) {
	var out []target.SnapshotInfo
	_, err := f.do(ctx, call{Op: Op{Method: "Snapshots", Name: name, Sequence: -1}, apply: func(st *state, _ Kind) error {
		b := st.blobs[name]
		if b == nil {
			return nil
		}
		for _, sn := range b.snapshots {
			out = append(out, target.SnapshotInfo{ID: sn.id, Metadata: sn.copyMetadata(), Size: sn.size, Time: sn.time})
		}
		return nil
	}})
	return out, err
}

// DeleteSnapshot implements target.Target.
func (f *Fake) DeleteSnapshot(ctx context.Context, name, id string) error {
	op := Op{Method: "DeleteSnapshot", Name: name, Snapshot: id, Sequence: -1, Write: true}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		if b := st.blobs[name]; b != nil {
			b.snapshots = slices.DeleteFunc(b.snapshots, func(sn *snapshot) bool { return sn.id == id })
		}
		return nil
	}})
	return err
}

// AcquireLease implements target.Target.
func (f *Fake) AcquireLease(ctx context.Context, name, id string) error {
	return f.onLease(ctx, "AcquireLease", name, id, func(b *blob) error {
		if id == "" {
			return target.ErrName
		}
		return b.lease.acquire(id)
	})
}

// BreakLease implements target.Target.
func (f *Fake) BreakLease(ctx context.Context, name string) error {
	return f.onLease(ctx, "BreakLease", name, "", func(b *blob) error {
		b.lease.breakNow()
		return nil
	})
}

// ReleaseLease implements target.Target.
func (f *Fake) ReleaseLease(ctx context.Context, name, id string) error {
	return f.onLease(ctx, "ReleaseLease", name, id, func(b *blob) error { return b.lease.release(id) })
}

func (f *Fake) onLease(ctx context.Context, method, name, id string, act func(*blob) error) error {
	op := Op{Method: method, Name: name, Lease: id, Sequence: -1, Write: true}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		b := st.blobs[name]
		if b == nil {
			return target.ErrNotFound
		}
		return act(b)
	}})
	return err
}
