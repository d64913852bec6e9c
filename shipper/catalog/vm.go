package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// DefaultUpdateTries bounds UpdateVM. Two writers meet only at a takeover.
const DefaultUpdateTries = 8

// ListVMs returns the names of all VMs at the target, sorted by blob name. It
// lists every blob: the contract of the target has no directories.
func ListVMs(ctx context.Context, t target.Target) ([]string, error) {
	var vms []string
	for item, err := range t.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		if name, rest, err := DecodeName(item.Name); err == nil && rest == vmDoc {
			vms = append(vms, name)
		}
	}
	return vms, nil
}

// LoadVM reads vm.json; ErrNoVM if there is none.
func LoadVM(ctx context.Context, t target.Target, vm string) (doc VMDoc, etag string, err error) {
	object, err := t.Get(ctx, VMDocName(vm))
	if errors.Is(err, target.ErrNotFound) {
		return VMDoc{}, "", &Error{Doc: VMDocName(vm), Class: retry.NonRecoverable, Code: "vm-not-found",
			Err: fmt.Errorf("%w: %w", ErrNoVM, err), Hint: "Check the name and the target's URL."}
	}
	if err != nil {
		return VMDoc{}, "", err
	}
	doc, err = decodeVM(vm, object.Data)
	return doc, object.ETag, err
}

func decodeVM(vm string, data []byte) (doc VMDoc, err error) {
	if err = decode(VMDocName(vm), data, &doc); err == nil && doc.Name != vm {
		err = malformed(VMDocName(vm), fmt.Sprintf("is of VM %q", doc.Name))
	}
	return doc, err
}

func encodeVM(doc VMDoc) ([]byte, error) {
	doc.Version = doc.version()
	doc.Updated, doc.UnchangedUntil = doc.Updated.UTC(), doc.UnchangedUntil.UTC()
	data, err := encode(&doc)
	if err != nil {
		return nil, &Error{Doc: VMDocName(doc.Name), Class: retry.Bug, Code: "malformed-document", Err: err}
	}
	return data, nil
}

// CreateVM writes the first vm.json. It may be repeated: a document with the
// same VM id, owner and generation is our own first attempt. Any other is
// target.ErrExists.
func CreateVM(ctx context.Context, t target.Target, doc VMDoc) error {
	data, err := encodeVM(doc)
	if err != nil {
		return err
	}
	_, createErr := t.Create(ctx, VMDocName(doc.Name), data)
	if createErr == nil || !mayExist(createErr) {
		return createErr
	}
	found, _, err := LoadVM(ctx, t, doc.Name)
	switch {
	case err == nil && found.VMID == doc.VMID && found.Owner == doc.Owner && found.Generation == doc.Generation:
		return nil
	case err == nil && !errors.Is(createErr, target.ErrExists):
		return fmt.Errorf("%w: %w", target.ErrExists, createErr)
	}
	return createErr
}

// mayExist tells whether a create that failed with err may have found, made, or
// yet make the object.
func mayExist(err error) bool {
	return errors.Is(err, target.ErrExists) || target.OutcomeOf(err) == target.Unknown
}

// UpdateVM changes vm.json under If-Match (I7) and returns what is there now.
// change is called again on a fresh document when another writer came between,
// so it decides on what it is given, each time; its error ends the update
// unchanged and is returned as it is. Nothing is written when it changes
// nothing. A replace of unknown outcome is resolved by reading back.
func UpdateVM(ctx context.Context, t target.Target, vm string, change func(*VMDoc) error) (VMDoc, error) {
	for range DefaultUpdateTries {
		doc, etag, err := LoadVM(ctx, t, vm)
		if err != nil {
			return VMDoc{}, err
		}
		before, err := encodeVM(doc)
		if err != nil {
			return VMDoc{}, err
		}
		if err := change(&doc); err != nil {
			return VMDoc{}, err
		}
		after, err := encodeVM(doc)
		if doc.Name != vm {
			err = &Error{Doc: VMDocName(vm), Class: retry.Bug, Code: "malformed-document",
				Err: fmt.Errorf("%w: the name became %q", ErrMalformed, doc.Name)}
		}
		if err != nil || bytes.Equal(before, after) {
			return doc, err
		}
		err = replaceVM(ctx, t, vm, after, etag)
		if err == nil || !errors.Is(err, target.ErrCondition) {
			return doc, err
		}
	}
	return VMDoc{}, &Error{Doc: VMDocName(vm), Class: retry.Recoverable, Code: "vm-contended", Err: ErrContended,
		Hint: "Look for a second appliance that writes to this VM."}
}

func replaceVM(ctx context.Context, t target.Target, vm string, data []byte, etag string) error {
	_, err := t.Replace(ctx, VMDocName(vm), data, etag)
	if err == nil || target.OutcomeOf(err) == target.Known {
		return err
	}
	if object, readErr := t.Get(ctx, VMDocName(vm)); readErr == nil && bytes.Equal(object.Data, data) {
		return nil
	}
	return err
}
