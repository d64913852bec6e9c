package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// CreatePin writes a reader's pin and returns its ETag. The reader then reads
// the record and vm.json again: only what is there after the pin is held by it.
func CreatePin(ctx context.Context, t target.Target, p Pin) (etag string, err error) {
	name, data, err := encodePin(p)
	if err != nil {
		return "", err
	}
	return t.Create(ctx, name, data)
}

// ReplacePin writes it again, with a later end; ErrPinGone if somebody deleted
// or changed it.
func ReplacePin(ctx context.Context, t target.Target, p Pin, etag string) (newETag string, err error) {
	name, data, err := encodePin(p)
	if err != nil {
		return "", err
	}
	newETag, err = t.Replace(ctx, name, data, etag)
	if errors.Is(err, target.ErrCondition) {
		object, readErr := t.Get(ctx, name)
		if readErr == nil && string(object.Data) == string(data) {
			return object.ETag, nil // an earlier attempt of ours was applied
		}
		err = fmt.Errorf("%w: %w", ErrPinGone, err)
	}
	return newETag, err
}

func encodePin(p Pin) (name string, data []byte, err error) {
	p.Version, p.Created, p.Until = FormatVersion, p.Created.UTC(), p.Until.UTC()
	name = PinName(p.VM, p.ID)
	if data, err = encode(&p); err != nil {
		err = &Error{Doc: name, Class: retry.Bug, Code: "malformed-document", Err: err}
	}
	return name, data, err
}

// DeletePin ends a pin; absent is success. Ids are never used again.
func DeletePin(ctx context.Context, t target.Target, vm, id string) error {
	return t.Delete(ctx, PinName(vm, id))
}

// Pins reads all pins of a VM, expired ones included. One that cannot be
// understood is an error: who prunes must know all of them.
func Pins(ctx context.Context, t target.Target, vm string) ([]Pin, error) {
	var pins []Pin
	for item, err := range t.List(ctx, PinsPrefix(vm)) {
		if err != nil {
			return nil, err
		}
		object, err := t.Get(ctx, item.Name)
		if errors.Is(err, target.ErrNotFound) {
			continue // its reader is done
		}
		if err != nil {
			return nil, err
		}
		var p Pin
		if err := decode(item.Name, object.Data, &p); err != nil {
			return nil, err
		}
		pins = append(pins, p)
	}
	return pins, nil
}

// Expired tells whether the pin holds nothing any more.
func (p Pin) Expired(now time.Time) bool { return now.After(p.Until) }
