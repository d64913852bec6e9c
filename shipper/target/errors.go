package target

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// What went wrong, for errors.Is. Each is wrapped in a *Error.
var (
	ErrNotFound    = errors.New("no such object")
	ErrNoContainer = errors.New("no such container")       // not ErrNotFound: a container that is gone must not read as an empty one
	ErrExists      = errors.New("exists already")          // Create, CreatePages
	ErrCondition   = errors.New("etag has changed")        // If-Match
	ErrSequence    = errors.New("sequence number differs") // Guard.Sequence
	ErrLeased      = errors.New("lease held by another")   // also: no lease given on a leased blob
	ErrLeaseLost   = fmt.Errorf("lease broken or gone: %w", ErrLeased)
	ErrSnapshots   = errors.New("has snapshots") // a page blob that was to be deleted
	ErrChecksum    = errors.New("checksum differs")
	ErrAuth        = errors.New("not authorized")
	ErrThrottled   = errors.New("target is throttling") // Error.RetryAfter may be set
	ErrTooLarge    = errors.New("too large")
	ErrNoSum       = errors.New("the target computes no checksum") // Sum
	ErrVersion     = errors.New("written by another version")
	ErrDamaged     = errors.New("damaged at the target")
	ErrRange       = errors.New("range not aligned or outside the blob")
	ErrName        = errors.New("name not allowed")
)

// Outcome tells whether a failed request can have changed anything. The zero
// value is the careful one.
type Outcome uint8

const (
	Unknown Outcome = iota // may have been applied, or may be applied later
	Known                  // refused: changed nothing and never will
)

func (o Outcome) String() string {
	if o == Known {
		return "known"
	}
	return "unknown"
}

// Error is the error of every method of a Target.
type Error struct {
	Op         string // the method, e.g. "PutPages"
	Name       string // of the blob, or the prefix of a List
	Class      retry.Class
	Code       string // stable, kebab-case, for status, log and metrics
	Status     int    // HTTP status, 0 if there was none
	Outcome    Outcome
	RetryAfter time.Duration // 0: the target did not say
	Err        error         // wraps one of the sentinels where one fits
	Hint       string        // the next action, a sentence for the operator; may be empty
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %v", e.Op, e.Name, e.Err)
	if e.Status != 0 {
		fmt.Fprintf(&b, " (status %d)", e.Status)
	}
	if e.Outcome == Unknown {
		b.WriteString(" (outcome unknown)")
	}
	return b.String()
}

// Unwrap makes errors.Is find the sentinels.
func (e *Error) Unwrap() error { return e.Err }

// RetryClass, ErrorCode, ErrorAction, RetryDelay and OutcomeUnknown are what
// package retry asks of an error.
func (e *Error) RetryClass() retry.Class { return e.Class }

// ErrorCode is Code.
func (e *Error) ErrorCode() string { return e.Code }

// ErrorAction is Hint.
func (e *Error) ErrorAction() string { return e.Hint }

// RetryDelay is RetryAfter.
func (e *Error) RetryDelay() time.Duration { return e.RetryAfter }

// OutcomeUnknown reports whether the request may have been, or may yet be, applied.
func (e *Error) OutcomeUnknown() bool { return e.Outcome == Unknown }

// OutcomeOf is the outcome of a call that returned err; no error, and no *Error
// in the chain of one, count as Known and Unknown.
func OutcomeOf(err error) Outcome {
	var e *Error
	switch {
	case err == nil:
		return Known
	case errors.As(err, &e):
		return e.Outcome
	}
	return Unknown
}
