package fake

import "github.com/vhdrelay/vhdrelay/shipper/target"

// LeaseState is the state of a blob's lease; A is the id that holds or held it.
type LeaseState uint8

// The columns of AZURE.md 1.4. Breaking and Expired cannot be reached through
// the contract, which knows infinite leases and immediate breaks only, but
// another tool can leave them: SetLease.
const (
	Available LeaseState = iota
	Leased
	Breaking
	Broken
	Expired
)

// bearer is who asks: the holder A, someone else, or nobody.
type bearer uint8

const (
	withA bearer = iota
	withB
	withNone
)

type lease struct {
	state LeaseState
	id    string
}

func (l lease) bearer(id string) bearer {
	switch {
	case id == "":
		return withNone
	case id == l.id && l.state != Available:
		return withA
	}
	return withB
}

// inForce: writes without the id are refused.
func (l lease) inForce() bool { return l.state == Leased || l.state == Breaking }

// writes is the table of AZURE.md 1.4: what a write meets, by state and bearer.
var writes = [...][3]error{
	Available: {withA: target.ErrLeaseLost, withB: target.ErrLeaseLost, withNone: nil},
	Leased:    {withA: nil, withB: target.ErrLeased, withNone: target.ErrLeased},
	Breaking:  {withA: nil, withB: target.ErrLeased, withNone: target.ErrLeased},
	Broken:    {withA: target.ErrLeaseLost, withB: target.ErrLeaseLost, withNone: nil},
	Expired:   {withA: target.ErrLeaseLost, withB: target.ErrLeaseLost, withNone: nil},
}

// acquires is the same for Acquire with a proposed id.
var acquires = [...][2]error{
	Available: {},
	Leased:    {withA: nil, withB: target.ErrLeased},
	Breaking:  {withA: target.ErrLeased, withB: target.ErrLeased},
	Broken:    {},
	Expired:   {},
}

func (l lease) write(id string) error { return writes[l.state][l.bearer(id)] }

func (l *lease) acquire(id string) error {
	if err := acquires[l.state][l.bearer(id)]; err != nil {
		return err
	}
	*l = lease{Leased, id}
	return nil
}

func (l *lease) breakNow() {
	if l.state != Available {
		l.state = Broken
	}
}

func (l *lease) release(id string) error {
	switch who := l.bearer(id); {
	case who == withA:
		*l = lease{}
	case l.inForce():
		return target.ErrLeased
	}
	return nil
}

// SetLease puts the lease of a page blob into any state, with A as its id. It
// reports whether the blob exists.
func (f *Fake) SetLease(name string, s LeaseState, id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.mu.state.blobs[name]
	if b == nil {
		return false
	}
	b.lease = lease{s, id}
	return true
}
