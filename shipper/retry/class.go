// Package retry decides what to do after an error: it sorts errors into
// classes, repeats single requests for a short while, says how long a failed
// cycle waits, and paces the requests to one account. It is the only layer that
// repeats anything.
package retry

// Class is what an error means for going on (DESIGN I12, BEHAVIOUR §Retry).
type Class uint8

const (
	// Recoverable: time mends it. Network, timeout, throttling, low disk or
	// memory. The zero value: what nobody classified is tried again, visibly.
	Recoverable Class = iota
	// NonRecoverable: an operator must act. Authentication, a missing container,
	// a broken image chain.
	NonRecoverable
	// Bug: we broke a rule of our own. Nothing is repeated.
	Bug
)

func (c Class) String() string {
	switch c {
	case Recoverable:
		return "recoverable"
	case NonRecoverable:
		return "non-recoverable"
	}
	return "bug"
}
