package dir

import (
	"context"
	"fmt"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// SetSequence implements target.Target.
func (d *Dir) SetSequence(ctx context.Context, name string, sequence int64, lease, ifMatch string) (string, error) {
	var etag string
	err := d.run(ctx, "SetSequence", name, func(rel string) error {
		if err := target.CheckSequence(sequence); err != nil {
			return err
		}
		return d.exclusive(ctx, rel, func(a *access) (err error) {
			if err := a.allows(lease); err != nil {
				return err
			}
			if err := a.matches(ifMatch, a.info); err != nil {
				return err
			}
			a.Sequence = sequence
			a.Changes++
			if err := a.save(); err != nil {
				return err
			}
			etag, err = a.seen()
			return lost(err)
		})
	})
	if err != nil {
		return "", err
	}
	return etag, nil
}

// AcquireLease implements target.Target.
func (d *Dir) AcquireLease(ctx context.Context, name, id string) error {
	return d.onLease(ctx, "AcquireLease", name, func(s *state) error {
		switch {
		case id == "":
			return fmt.Errorf("%w: empty lease id", target.ErrName)
		case s.leased() && s.Lease != id:
			return target.ErrLeased
		}
		s.Lease, s.Broken = id, false
		return nil
	})
}

// BreakLease implements target.Target.
func (d *Dir) BreakLease(ctx context.Context, name string) error {
	return d.onLease(ctx, "BreakLease", name, func(s *state) error {
		s.Broken = s.Lease != ""
		return nil
	})
}

// ReleaseLease implements target.Target.
func (d *Dir) ReleaseLease(ctx context.Context, name, id string) error {
	return d.onLease(ctx, "ReleaseLease", name, func(s *state) error {
		if s.leased() && s.Lease != id {
			return target.ErrLeased
		}
		if s.Lease == id {
			s.Lease, s.Broken = "", false
		}
		return nil
	})
}

// onLease changes the lease alone: the ETag stays. What is so already is written
// again: an earlier attempt may not be durable.
func (d *Dir) onLease(ctx context.Context, method, name string, act func(*state) error) error {
	return d.run(ctx, method, name, func(rel string) error {
		return d.exclusive(ctx, rel, func(a *access) error {
			if err := act(&a.state); err != nil {
				return err
			}
			return a.save()
		})
	})
}
