package shipper

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Erasure is what of a VM is to be deleted at the target.
type Erasure struct {
	Target target.Target
	Pacer  *retry.Pacer
	VM     string
	// ID and Generation are what vm.json must name: nothing of another writer is
	// ever deleted (I7).
	ID         string
	Generation uint64
	TakingOver uint64 // of a takeover of ours that did not come to its end; 0: none
	Lease      string // of our own, for the replicas: a late delete finds another's then
}

// Run deletes the VM at the target: its records first, the newest first, so that no
// reader ever sees a point that lacks something; then pins, log segments, snapshots
// and replicas; vm.json last. It may be repeated after any error and any crash, and
// goes on where it was. A VM that is not there is a success. No pipeline of the VM
// may run.
func (e Erasure) Run(ctx context.Context) error {
	_, err := e.mine(ctx)
	if errors.Is(err, catalog.ErrNoVM) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := e.records(ctx); err != nil {
		return fmt.Errorf("delete the recovery points of %s: %w", e.VM, err)
	}
	etag, err := e.mine(ctx)
	if err != nil {
		return err
	}
	if err := e.blobs(ctx); err != nil {
		return fmt.Errorf("delete the replica of %s: %w", e.VM, err)
	}
	// Under If-Match: the VM may be protected again while a request of this one is on its way still.
	return e.repeat(ctx, func(ctx context.Context) error { return e.Target.DeleteIf(ctx, catalog.VMDocName(e.VM), etag) })
}

// Generations reads the generation of a VM's pipeline, and that of a takeover which did not come to its end, from its durable
// state; 0 where there is none.
func Generations(docs Documents, id string) (generation, takingOver uint64, err error) {
	var rec vmRecord
	if _, err := docs.Load("ship/"+id, &rec); err != nil {
		return 0, 0, fmt.Errorf("pipeline state: %w", err)
	}
	return rec.Generation, rec.TakingOver, nil
}

func (e Erasure) repeat(ctx context.Context, op func(context.Context) error) error {
	return retry.Do(ctx, retry.Policy{Idempotent: true, Pacer: e.Pacer}, op)
}

// mine reads vm.json, which must be ours, and returns its ETag.
func (e Erasure) mine(ctx context.Context) (etag string, err error) {
	var doc catalog.VMDoc
	err = e.repeat(ctx, func(ctx context.Context) (err error) {
		doc, etag, err = catalog.LoadVM(ctx, e.Target, e.VM)
		return err
	})
	if err != nil {
		return "", err
	}
	if doc.VMID == e.ID && (doc.Generation == e.Generation || doc.Generation == e.TakingOver && e.TakingOver != 0) {
		return etag, nil
	}
	return "", &Problem{Code: "replica-not-ours", Class: retry.NonRecoverable,
		Action: "delete it from the host that owns it, or keep it: vhdrelay unprotect " + e.VM,
		Err: fmt.Errorf("vm %s: generation %d at the target belongs to host %s, ours was %d: %w",
			e.VM, doc.Generation, doc.Owner.Host, e.Generation, ErrFenced)}
}

// records are deleted by their names: one that nobody can read goes too.
func (e Erasure) records(ctx context.Context) error {
	items, err := e.list(ctx, catalog.RecordsPrefix(e.VM))
	if err != nil {
		return err
	}
	slices.SortFunc(items, func(a, b target.Item) int { return e.age(b).Compare(e.age(a)) })
	for _, item := range items {
		if err := e.blob(ctx, item); err != nil {
			return err
		}
	}
	return nil
}

// age is the point of a record; what has the name of none is older than all.
func (e Erasure) age(item target.Item) catalog.PointID {
	id, err := catalog.ParseRecord(e.VM, item.Name)
	if err != nil {
		return catalog.PointID{}
	}
	return id
}

// blobs deletes everything below the VM's name but vm.json.
func (e Erasure) blobs(ctx context.Context) error {
	items, err := e.list(ctx, catalog.EncodeName(e.VM)+"/")
	if err != nil {
		return err
	}
	for _, item := range items {
		if item.Name == catalog.VMDocName(e.VM) {
			continue
		}
		if err := e.blob(ctx, item); err != nil {
			return err
		}
	}
	return nil
}

// list reads a whole listing; what was listed before an error is no list.
func (e Erasure) list(ctx context.Context, prefix string) (items []target.Item, err error) {
	err = e.repeat(ctx, func(ctx context.Context) error {
		items = nil
		for item, err := range e.Target.List(ctx, prefix) {
			if err != nil {
				return err
			}
			items = append(items, item)
		}
		return nil
	})
	return items, err
}

func (e Erasure) blob(ctx context.Context, item target.Item) error {
	if _, _, _, err := catalog.ParseSegment(item.Name); err == nil || !item.Pages {
		return e.repeat(ctx, func(ctx context.Context) error { return e.Target.Delete(ctx, item.Name) })
	}
	return e.replica(ctx, item.Name)
}

// replica deletes a page blob with its snapshots, under a lease of ours.
func (e Erasure) replica(ctx context.Context, name string) error {
	err := e.repeat(ctx, func(ctx context.Context) error {
		err := e.Target.AcquireLease(ctx, name, e.Lease)
		if !errors.Is(err, target.ErrLeased) {
			return err
		}
		if err := e.Target.BreakLease(ctx, name); err != nil { // the one the pipeline had
			return err
		}
		return e.Target.AcquireLease(ctx, name, e.Lease)
	})
	if errors.Is(err, target.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.repeat(ctx, func(ctx context.Context) error {
		snaps, err := e.Target.Snapshots(ctx, name)
		if err != nil {
			return err
		}
		for _, s := range snaps {
			if err := e.Target.DeleteSnapshot(ctx, name, s.ID); err != nil {
				return err
			}
		}
		return e.Target.DeletePages(ctx, name, e.Lease)
	})
}
