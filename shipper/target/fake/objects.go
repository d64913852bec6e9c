package fake

import (
	"bytes"
	"context"
	"io"
	"iter"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Get implements target.Target.
func (f *Fake) Get(ctx context.Context, name string) (target.Object, error) {
	var out target.Object
	k, err := f.do(ctx, call{Op: Op{Method: "Get", Name: name, Sequence: -1}, apply: func(st *state, _ Kind) error {
		if err := target.CheckName(name); err != nil {
			return err
		}
		o := st.objects[name]
		if o == nil {
			return target.ErrNotFound
		}
		out = target.Object{Data: bytes.Clone(o.data), ETag: o.etag}
		return nil
	}})
	if err != nil {
		return target.Object{}, err
	}
	f.sent(len(out.Data))
	switch {
	case k == Truncate:
		out.Data = out.Data[:len(out.Data)/2]
	case k == Corrupt && len(out.Data) > 0:
		out.Data[len(out.Data)/2] ^= 1
	}
	return out, nil
}

func (f *Fake) sent(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.out += int64(n)
}

// Create implements target.Target.
func (f *Fake) Create(ctx context.Context, name string, data []byte) (string, error) {
	return f.put(ctx, "Create", name, data, func(st *state) error {
		if st.exists(name) {
			return target.ErrExists
		}
		return nil
	})
}

// Replace implements target.Target.
func (f *Fake) Replace(ctx context.Context, name string, data []byte, etag string) (string, error) {
	return f.put(ctx, "Replace", name, data, func(st *state) error {
		if o := st.objects[name]; o == nil || o.etag != etag {
			return target.ErrCondition
		}
		return nil
	})
}

// put writes a small object if the condition holds when it takes effect.
func (f *Fake) put(ctx context.Context, method, name string, data []byte, condition func(*state) error) (string, error) {
	var etag string
	_, err := f.do(ctx, call{
		Op:     Op{Method: method, Name: name, Len: int64(len(data)), Sequence: -1, Write: true},
		in:     len(data),
		detach: func() { data = bytes.Clone(data) },
		apply: func(st *state, _ Kind) error {
			if err := firstError(target.CheckName(name), target.CheckObject(data), condition(st)); err != nil {
				return err
			}
			etag = st.putObject(name, data)
			return nil
		},
	})
	if err != nil {
		return "", err
	}
	return etag, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Delete implements target.Target.
func (f *Fake) Delete(ctx context.Context, name string) error {
	return f.remove(ctx, "Delete", name, "", nil)
}

// DeleteIf implements target.Target.
func (f *Fake) DeleteIf(ctx context.Context, name, etag string) error {
	return f.remove(ctx, "DeleteIf", name, "", func(st *state) error {
		if o := st.objects[name]; o != nil && o.etag != etag || st.blobs[name] != nil {
			return target.ErrCondition
		}
		return nil
	})
}

// DeletePages implements target.Target.
func (f *Fake) DeletePages(ctx context.Context, name, lease string) error {
	return f.remove(ctx, "DeletePages", name, lease, nil)
}

// remove removes what has the name, if the condition holds when it takes effect; nil: whatever it is.
func (f *Fake) remove(ctx context.Context, method, name, lease string, condition func(*state) error) error {
	op := Op{Method: method, Name: name, Lease: lease, Sequence: -1, Write: true}
	_, err := f.do(ctx, call{Op: op, apply: func(st *state, _ Kind) error {
		if err := target.CheckName(name); err != nil {
			return err
		}
		if condition != nil {
			if err := condition(st); err != nil {
				return err
			}
		}
		if b := st.blobs[name]; b != nil {
			if err := b.lease.write(lease); err != nil {
				return err
			}
			if len(b.snapshots) > 0 {
				return target.ErrSnapshots
			}
		}
		delete(st.blobs, name)
		delete(st.objects, name)
		return nil
	}})
	return err
}

// List implements target.Target.
func (f *Fake) List(ctx context.Context, prefix string) iter.Seq2[target.Item, error] {
	return func(yield func(target.Item, error) bool) {
		var items []target.Item
		k, err := f.do(ctx, call{Op: Op{Method: "List", Name: prefix, Sequence: -1}, apply: func(st *state, _ Kind) error {
			items = st.list(prefix)
			return nil
		}})
		if err == nil && k == Truncate {
			items, err = items[:len(items)/2], target.Refused("List", prefix, io.ErrUnexpectedEOF)
		}
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
		if err != nil {
			yield(target.Item{}, err)
		}
	}
}
