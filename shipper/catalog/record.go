package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// DefaultReaders is how many documents are read at a time.
const DefaultReaders = 8

// CreateRecord makes an epoch a recovery point (I5), or, with Void set, makes
// sure that it never becomes one. It may be repeated without end: whatever an
// earlier attempt did, success means that the record stands.
//
//   - ErrVoided: the epoch was given up; it is no point.
//   - ErrRecorded: it was to be void, but it is a point, and stays.
//   - ErrForeignRecord: another writer used the name; non-recoverable.
//
// After an error whose outcome is unknown the record may still appear.
func CreateRecord(ctx context.Context, t target.Target, r Record) error {
	r.Version, r.Time = FormatVersion, r.Time.UTC()
	name := RecordName(r.VM, r.ID())
	data, err := encode(&r)
	if err != nil {
		return &Error{Doc: name, Class: retry.Bug, Code: "malformed-document", Err: err}
	}
	_, createErr := t.Create(ctx, name, data)
	if createErr == nil || !mayExist(createErr) {
		return createErr
	}
	found, err := LoadRecord(ctx, t, r.VM, r.ID())
	switch {
	case errors.Is(err, target.ErrNotFound):
		return createErr
	case err != nil:
		return fmt.Errorf("reading back after %w: %w", createErr, err)
	}
	return judgeRecord(name, r, found)
}

// judgeRecord tells whether the record found is the one wanted.
func judgeRecord(name string, want, found Record) error {
	same := found.EpochUUID == want.EpochUUID
	switch {
	case want.Void && found.Void:
		return nil
	case want.Void && same:
		return &Error{Doc: name, Class: retry.NonRecoverable, Code: "epoch-recorded", Err: ErrRecorded,
			Hint: "The epoch is kept; nothing to do."}
	case found.Void && same:
		return &Error{Doc: name, Class: retry.NonRecoverable, Code: "epoch-void", Err: ErrVoided,
			Hint: "The epoch was given up; its changes come with a later one."}
	case same && !found.Void && slices.Equal(found.Segments, want.Segments):
		return nil
	}
	return &Error{Doc: name, Class: retry.NonRecoverable, Code: "foreign-record",
		Err:  fmt.Errorf("%w: epoch %s, ours is %s", ErrForeignRecord, found.EpochUUID, want.EpochUUID),
		Hint: "Another appliance writes under our generation, or this one's state was reverted; find out which, then run: vhdrelay adopt."}
}

// LoadRecord reads one record; target.ErrNotFound if there is none.
func LoadRecord(ctx context.Context, t target.Target, vm string, id PointID) (Record, error) {
	name := RecordName(vm, id)
	object, err := t.Get(ctx, name)
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := decode(name, object.Data, &r); err != nil {
		return Record{}, err
	}
	if r.VM != vm || r.ID() != id {
		return Record{}, malformed(name, fmt.Sprintf("is of VM %q, point %s", r.VM, r.ID()))
	}
	return r, nil
}

// AllRecords reads every record of a VM, void ones and those beyond a cut
// included, in order.
func AllRecords(ctx context.Context, t target.Target, vm string) ([]Record, error) {
	ids, err := recordIDs(ctx, t, vm)
	if err != nil {
		return nil, err
	}
	records := make([]Record, len(ids))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(DefaultReaders)
	for i, id := range ids {
		g.Go(func() (err error) {
			records[i], err = LoadRecord(ctx, t, vm, id)
			if errors.Is(err, target.ErrNotFound) {
				return nil // pruned since it was listed
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(records, func(r Record) bool { return r.Epoch == 0 }), nil
}

func recordIDs(ctx context.Context, t target.Target, vm string) ([]PointID, error) {
	var ids []PointID
	for item, err := range t.List(ctx, RecordsPrefix(vm)) {
		if err != nil {
			return nil, err
		}
		id, err := ParseRecord(vm, item.Name)
		if err != nil {
			return nil, malformed(item.Name, "among the records, but no record")
		}
		ids = append(ids, id)
	}
	slices.SortFunc(ids, PointID.Compare)
	return ids, nil
}

// Records reads the recovery points of a VM in order: no void records, none
// beyond a cut. With an error that is ErrChain the records are valid
// nevertheless; a fold across the place it names is refused by package restore.
func Records(ctx context.Context, t target.Target, vm string) ([]Record, error) {
	_, records, err := Load(ctx, t, vm)
	return records, err
}

// Load is Records with the vm.json that judged them.
func Load(ctx context.Context, t target.Target, vm string) (VMDoc, []Record, error) {
	all, err := AllRecords(ctx, t, vm)
	if err != nil {
		return VMDoc{}, nil, err
	}
	// Read last: a cut written before the records were listed must be seen.
	doc, _, err := LoadVM(ctx, t, vm)
	if err != nil {
		return VMDoc{}, nil, err
	}
	live := doc.Live(all)
	return doc, live, CheckChain(live)
}

// Live leaves of all records those that are recovery points.
func (d VMDoc) Live(all []Record) []Record {
	var live []Record
	for _, r := range all {
		if !r.Void && d.Counts(r.ID()) {
			live = append(live, r)
		}
	}
	return live
}

// Counts tells whether an epoch lies inside the cuts. An older generation
// without a cut counts whole: its takeover is not finished, and may never be. A
// generation newer than vm.json's does not: nobody was given it.
func (d VMDoc) Counts(id PointID) bool {
	for _, c := range d.Cuts {
		if c.Generation == id.Generation {
			return id.Epoch <= c.Epoch
		}
	}
	return id.Generation <= d.Generation
}

// ChainError says where the chain of records is broken.
type ChainError struct {
	At       PointID // this record
	Previous PointID // names this one as the one before it
	Before   PointID // but this one is
}

func (e *ChainError) Error() string {
	return fmt.Sprintf("%v: point %s follows %s, not %s", ErrChain, e.At, e.Previous, e.Before)
}

// Unwrap makes it ErrChain.
func (e *ChainError) Unwrap() error { return ErrChain }

// CheckChain looks for the first record that steps over a live one. A gap is no
// fault: retention makes them. What a gap means is up to the fold that meets it.
func CheckChain(records []Record) error {
	for i := 1; i < len(records); i++ {
		if r, before := records[i], records[i-1].ID(); r.Previous.Less(before) {
			return &ChainError{At: r.ID(), Previous: r.Previous, Before: before}
		}
	}
	return nil
}
