package catalog

import (
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// What can be wrong with a catalog, for errors.Is.
var (
	ErrVersion       = errors.New("written by a newer vhdrelay")
	ErrMalformed     = errors.New("malformed document")
	ErrForeignRecord = errors.New("record of another writer")
	ErrVoided        = errors.New("epoch is void")
	ErrRecorded      = errors.New("epoch is a recovery point")
	ErrContended     = errors.New("vm.json keeps changing")
	ErrChain         = errors.New("chain of recovery points is broken")
	ErrNoVM          = errors.New("no such VM at the target")
	ErrNoPoint       = errors.New("no such recovery point")
	ErrPinGone       = errors.New("pin is gone")
)

// Error is what this package adds to an error of the target: the document, and
// the class and code of what the document says.
type Error struct {
	Doc   string // blob name
	Class retry.Class
	Code  string // stable, kebab-case
	Err   error  // wraps a sentinel
	Hint  string // the next action
}

func (e *Error) Error() string { return e.Doc + ": " + e.Err.Error() }

// Unwrap makes errors.Is find the sentinels.
func (e *Error) Unwrap() error { return e.Err }

// RetryClass, ErrorCode and ErrorAction are what package retry asks of an error.
func (e *Error) RetryClass() retry.Class { return e.Class }

// ErrorCode is Code.
func (e *Error) ErrorCode() string { return e.Code }

// ErrorAction is Hint.
func (e *Error) ErrorAction() string { return e.Hint }

func versionError(doc string, version int) error {
	return &Error{Doc: doc, Class: retry.NonRecoverable, Code: "format-version",
		Err:  fmt.Errorf("%w: format version %d, this one reads up to %d", ErrVersion, version, vmVersion),
		Hint: "Upgrade vhdrelay on this machine."}
}

func malformed(doc, why string) error {
	return &Error{Doc: doc, Class: retry.NonRecoverable, Code: "malformed-document",
		Err:  fmt.Errorf("%w: %s", ErrMalformed, why),
		Hint: "The document was damaged or changed by hand; restore it from a version or a backup of the target."}
}
