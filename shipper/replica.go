package shipper

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// replica is a replica blob under our lease, ready for one round of puts: the
// sequence number was raised for it, so that no straggler of an earlier round
// can land in it (AZURE.md 0.8).
type replica struct {
	vm    *VM
	disk  *disk
	key   string // the disk's name in blob names
	name  string
	lease string
	seq   int64
	size  int64
	etag  string
}

// openReplica takes the lease (again) and raises the sequence number. A replica
// that is not as we left it is noted: others wrote to it. From here on until the
// seal its ETag says nothing.
func (v *VM) openReplica(ctx context.Context, d *disk) (*replica, error) {
	st := d.state.get()
	r := &replica{vm: v, disk: d, key: st.Key, name: catalog.ReplicaName(v.opts.Name, st.Key), lease: st.Lease}
	if err := v.takeLease(ctx, r.name, r.lease); err != nil {
		return nil, err
	}
	if st.ETag != "" {
		if err := r.begin(ctx, st.ETag); err != nil {
			return nil, err
		}
	}
	return r, r.raise(ctx)
}

// begin ends what the ETag of the last seal stands for.
func (r *replica) begin(ctx context.Context, left string) error {
	var p target.Properties
	err := r.vm.repeat(ctx, func(ctx context.Context) (err error) {
		p, err = r.vm.target.Properties(ctx, r.name, "")
		return err
	})
	if err != nil {
		return err
	}
	if p.ETag != left {
		return r.vm.noteTouched(ctx, r.disk)
	}
	return r.disk.note(func(s *diskRecord) { s.ETag = "" })
}

// note is state.update; of a disk that left meanwhile nobody need know it.
func (d *disk) note(change func(*diskRecord)) error {
	err := d.state.update(change)
	if errors.Is(err, errRetired) {
		return nil
	}
	return err
}

// takeLease acquires the infinite lease under our id. A lease that is gone or
// another's, while vm.json still names our generation, is taken again: an outage
// fences nobody (I7).
func (v *VM) takeLease(ctx context.Context, name, id string) error {
	err := v.repeat(ctx, func(ctx context.Context) error {
		return v.target.AcquireLease(ctx, name, id)
	})
	if !errors.Is(err, target.ErrLeased) {
		return err
	}
	if err := v.checkGeneration(ctx); err != nil {
		return err
	}
	return v.repeat(ctx, func(ctx context.Context) error {
		if err := v.target.BreakLease(ctx, name); err != nil {
			return err
		}
		return v.target.AcquireLease(ctx, name, id)
	})
}

// raise sets the sequence number one higher, an absolute value under If-Match.
func (r *replica) raise(ctx context.Context) error {
	return r.vm.repeat(ctx, func(ctx context.Context) error {
		p, err := r.vm.target.Properties(ctx, r.name, "")
		if err != nil {
			return err
		}
		etag, err := r.vm.target.SetSequence(ctx, r.name, p.Sequence+1, r.lease, p.ETag)
		if err != nil {
			return err
		}
		r.seq, r.etag, r.size = p.Sequence+1, etag, p.Size
		return nil
	})
}

func (r *replica) guard() target.Guard { return target.Guard{Lease: r.lease, Sequence: r.seq} }

// seal ends a round: every put is answered; the raised number shuts out what was
// ever in flight, and the snapshot is taken of exactly that state.
func (r *replica) seal(ctx context.Context, at catalog.PointID, kind string) error {
	if err := r.raise(ctx); err != nil {
		return err
	}
	r.vm.opts.Hook(PointBeforeSnapshot)
	asked := false
	err := r.vm.repeat(ctx, func(ctx context.Context) error {
		// One that was there before we asked is of another attempt: a base's bytes may have changed since.
		if asked {
			if taken, err := r.hasSnapshot(ctx, at, kind); err != nil || taken {
				return err
			}
		}
		asked = true
		_, err := r.vm.target.Snapshot(ctx, r.name, r.lease, r.etag, catalog.SnapshotMetadata(at, kind))
		return err
	})
	if err != nil {
		return fmt.Errorf("snapshot of %s at %s: %w", r.name, at, err)
	}
	return r.disk.note(func(s *diskRecord) { s.ETag = r.etag })
}

// hasSnapshot looks for the answer that was lost.
func (r *replica) hasSnapshot(ctx context.Context, at catalog.PointID, kind string) (bool, error) {
	snaps, err := catalog.Snapshots(ctx, r.vm.target, r.vm.opts.Name, r.key)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(snaps, func(s catalog.Snapshot) bool { return s.Point == at && s.Kind == kind }), nil
}

// checkGeneration reads vm.json: a writer whose generation it no longer names is lost.
func (v *VM) checkGeneration(ctx context.Context) error {
	if err := v.lost(); err != nil {
		return err
	}
	var doc catalog.VMDoc
	err := v.repeat(ctx, func(ctx context.Context) (err error) {
		doc, _, err = catalog.LoadVM(ctx, v.target, v.opts.Name)
		return err
	})
	if errors.Is(err, catalog.ErrNoVM) {
		return targetLost(v.opts.Name, "its vm.json is gone from "+v.target.String())
	}
	if err != nil {
		return err
	}
	if ours := v.generation(); doc.Generation != ours {
		return v.lose(doc, ours)
	}
	v.noteDescribed(doc)
	return nil
}

// noteDescribed keeps what vm.json says of the disks and their points.
func (v *VM) noteDescribed(doc catalog.VMDoc) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.described, v.mu.doubts = slices.Clone(doc.Disks), slices.Clone(doc.Doubts)
}

// generation is ours, the one that we are taking over included.
func (v *VM) generation() uint64 {
	st := v.state.get()
	return max(st.Generation, st.TakingOver)
}

func newLease() string { return uuid.NewString() }
