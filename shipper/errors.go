package shipper

import (
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// Sentinels for errors.Is.
var (
	ErrVersion   = errors.New("written by a newer version")
	ErrFenced    = errors.New("another writer has taken the VM over")
	ErrForeign   = errors.New("the VM at the target belongs to another host")
	ErrLost      = errors.New("the target does not hold what was replicated")
	ErrBadDisk   = errors.New("disk cannot be replicated as it is")
	ErrUnknownVM = errors.New("no such VM")
	// ErrUnderWay: others changed the replica, and what they did is in no snapshot yet; after the next apply it is.
	ErrUnderWay = errors.New("the replica is being written to")
)

// Problem is an error with what an operator needs: a stable code and the next action (I12).
type Problem struct {
	Code   string
	Action string
	Class  retry.Class
	Err    error
}

func (p *Problem) Error() string { return p.Err.Error() }

// Unwrap makes errors.Is find the sentinels.
func (p *Problem) Unwrap() error { return p.Err }

// RetryClass, ErrorCode and ErrorAction are what package retry asks of an error.
func (p *Problem) RetryClass() retry.Class { return p.Class }

// ErrorCode is Code.
func (p *Problem) ErrorCode() string { return p.Code }

// ErrorAction is Action.
func (p *Problem) ErrorAction() string { return p.Action }

func fenced(vm string, doc catalog.VMDoc, ours uint64) error {
	return &Problem{Code: "fenced", Class: retry.NonRecoverable,
		Action: "shut this VM down here; on the host that shall own it run: vhdrelay adopt " + vm,
		Err: fmt.Errorf("vm %s: generation %d belongs to host %s since %s, ours is %d: %w",
			vm, doc.Generation, doc.Owner.Host, doc.Updated.Format("2006-01-02 15:04:05Z07:00"), ours, ErrFenced)}
}

func foreign(vm string, doc catalog.VMDoc) error {
	return &Problem{Code: "owned-by-another", Class: retry.NonRecoverable,
		Action: "choose another prefix or VM name, or take it over with: vhdrelay adopt " + vm,
		Err:    fmt.Errorf("vm %s: replicated by host %s: %w", vm, doc.Owner.Host, ErrForeign)}
}

func seeded(vm, blob string) error {
	return &Problem{Code: "replica-exists", Class: retry.NonRecoverable,
		Action: "to use what is there run: vhdrelay adopt " + vm + "; else delete the blob and run: vhdrelay sync " + vm,
		Err:    fmt.Errorf("vm %s: %s was put there by somebody else: %w", vm, blob, ErrForeign)}
}

func targetLost(vm, what string) error {
	return &Problem{Code: "target-lost", Class: retry.NonRecoverable,
		Action: "correct target.url, then: vhdrelay resume " + vm + "; if the replica was deleted on purpose: vhdrelay unprotect " + vm + ", then vhdrelay protect " + vm,
		Err:    fmt.Errorf("vm %s: %s: %w", vm, what, ErrLost)}
}

// lost is the error of a writer that found another generation in vm.json, nil as
// long as it is the writer. It is sticky: such a writer never writes again by
// itself (I7), not even when the other one has gone.
func (v *VM) lost() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.lostTo
}

// lose makes us a lost writer.
func (v *VM) lose(doc catalog.VMDoc, ours uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.lostTo == nil {
		v.mu.lostTo = fenced(v.opts.Name, doc, ours)
	}
	return v.mu.lostTo
}

// CodeChain is the code of a disk whose image lies over something that is not there.
const CodeChain = "chain-broken"

// chainBroken: no retry finds the missing link.
func chainBroken(vm string, err error) error {
	return &Problem{Code: CodeChain, Class: retry.NonRecoverable, Err: err,
		Action: "put the image that is named into its place in the store, as it was; unless that was at the mount, then: vhdrelay resume " + vm}
}
