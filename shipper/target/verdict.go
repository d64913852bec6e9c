package target

import (
	"context"
	"errors"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// verdict is what a sentinel means for going on. same: the same request would
// get the same answer, so repeating it at once is of no use, whatever the class.
type verdict struct {
	err   error
	class retry.Class
	code  string
	same  bool
	hint  string
}

// verdicts in the order they are looked up: a sentinel that wraps another comes
// before it. The codes are part of the operator's contract.
var verdicts = []verdict{
	{ErrNoContainer, retry.NonRecoverable, "container-not-found", true, "check target.url; create the container, or mount the directory, then resume the VM"},
	{ErrNotFound, retry.NonRecoverable, "target-not-found", true, "the target does not hold what it should: see vhdrelay verify"},
	{ErrExists, retry.NonRecoverable, "target-exists", true, "another writer used the name: see who owns the VM with vhdrelay points"},
	{ErrCondition, retry.Recoverable, "etag-changed", true, ""},
	{ErrSequence, retry.Recoverable, "sequence-changed", true, ""},
	{ErrLeaseLost, retry.Recoverable, "lease-lost", true, "nothing to do: it is taken again while the VM is still ours"},
	{ErrLeased, retry.NonRecoverable, "lease-taken", true, "another writer holds the replica: see who owns the VM, then adopt it or stop here"},
	{ErrSnapshots, retry.Recoverable, "has-snapshots", true, ""},
	{ErrChecksum, retry.Recoverable, "checksum-mismatch", false, ""},
	{ErrAuth, retry.NonRecoverable, "not-authorized", true, "check target.credentials and the role of the identity, then resume the VM"},
	{ErrThrottled, retry.Recoverable, retry.CodeThrottled, false, ""},
	{ErrTooLarge, retry.NonRecoverable, "too-large", true, "the target's limit is passed: see vhdrelay preflight"},
	{ErrNoSum, retry.Recoverable, "no-checksum", true, "none: the bytes are read back instead"},
	{ErrVersion, retry.NonRecoverable, "target-version", true, "use the version of vhdrelay that wrote the target, or a newer one"},
	{ErrDamaged, retry.NonRecoverable, "target-damaged", true, "restore what the error names from a backup of the target, or remove the replica and start over"},
	{ErrRange, retry.Bug, "bad-range", true, ""},
	{ErrName, retry.Bug, "bad-name", true, ""},
}

// Refused is the error of a request that changed nothing and never will. Class,
// code and hint follow from the sentinel err wraps, else from retry.Describe.
func Refused(op, name string, err error) *Error { return wrap(op, name, err, Known) }

// Lost is the error of a request that may have been, or may yet be, applied.
func Lost(op, name string, err error) *Error { return wrap(op, name, err, Unknown) }

func wrap(op, name string, err error, o Outcome) *Error {
	e := &Error{Op: op, Name: name, Outcome: o, Err: err}
	if v := verdictOf(err); v != nil {
		e.Class, e.Code, e.Hint = v.class, v.code, v.hint
		return e
	}
	e.Class, e.Code, _, e.Hint = retry.Describe(err)
	return e
}

func verdictOf(err error) *verdict {
	for i := range verdicts {
		if errors.Is(err, verdicts[i].err) {
			return &verdicts[i]
		}
	}
	return nil
}

// SameAnswer reports whether repeating the same request at once would be of no
// use because its answer depends on a state that only another request changes,
// or because the caller has stopped waiting. Where the implementation knows that
// time mends what else needs an operator (a credential that is being changed, a
// lease that is breaking), the next answer is another.
func (e *Error) SameAnswer() bool {
	if v := verdictOf(e.Err); v != nil {
		return v.same && (v.class != retry.NonRecoverable || e.Class != retry.Recoverable)
	}
	return errors.Is(e.Err, context.Canceled)
}
