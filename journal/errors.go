package journal

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrNewer: the store was written by a newer version; nothing in it was touched.
	ErrNewer = errors.New("journal: store has a newer format")
	// ErrFormat: a record of the store does not parse, or breaks an invariant.
	ErrFormat = errors.New("journal: bad record")
	// ErrSealed: the VM has a sealed epoch outstanding.
	ErrSealed = errors.New("journal: an epoch is sealed and not ended")
	// ErrEnded: the sealed epoch has ended.
	ErrEnded = errors.New("journal: epoch has ended")
	// ErrVoid: the sealed epoch is void; its capture must stop and merge it back.
	ErrVoid = errors.New("journal: epoch is void")
	// ErrNotListed: a block read through a sealed view is not on its capture list.
	ErrNotListed = errors.New("journal: block is not on the capture list")
	// ErrReadTwice: a listed block was read through the sealed view before.
	ErrReadTwice = errors.New("journal: block was read before")
	// ErrNotSettled: the sealed epoch's old writers are not done; call Wait first.
	ErrNotSettled = errors.New("journal: epoch has writers in flight")
	// ErrTooLarge: a change reaches beyond MaxFileSize. It wraps EFBIG, which is what a guest is told.
	ErrTooLarge = fmt.Errorf("journal: beyond the largest image size: %w", unix.EFBIG)
	// ErrFailing: the store does not take commits.
	ErrFailing = errors.New("journal: store is failing")
	// ErrUntracked: neither the store nor the image took a record of the change,
	// so it must not happen (I9).
	ErrUntracked = errors.New("journal: change cannot be tracked")
	// ErrExists: the VM has a disk of that name attached.
	ErrExists = errors.New("journal: disk is attached already")
	// ErrBusy: a write is in flight.
	ErrBusy = errors.New("journal: writes are in flight")
	// ErrClosed: the journal is closed.
	ErrClosed = errors.New("journal: closed")
	// ErrNotFound: no such document or disk.
	ErrNotFound = errors.New("journal: not found")
)

// newerError is ErrNewer, with the store's version.
type newerError int

func (e newerError) Error() string {
	return fmt.Sprintf("%v: it has %d, this program knows up to %d", ErrNewer, int(e), formatCurrent)
}

// Is makes it ErrNewer.
func (e newerError) Is(target error) bool { return target == ErrNewer }

// ErrorAction is what to do next.
func (e newerError) ErrorAction() string {
	return "install the newer vhdrelay again and start it; disks that were written meanwhile are compared whole, nothing is sent that the target has"
}

// CodeSlow is the stable code of a store that is given up because it takes too long.
const CodeSlow = "state-disk-slow"

// slowError is ErrFailing for a store that answers too late.
type slowError struct{ what string }

func (e slowError) Error() string { return e.what }

// Is makes it ErrFailing.
func (e slowError) Is(target error) bool { return target == ErrFailing }

// ErrorCode is its stable code, for status, log and metrics.
func (e slowError) ErrorCode() string { return CodeSlow }

// ErrorAction is what to do next.
func (e slowError) ErrorAction() string { return ActionSlow }

// ActionSlow is what to do about CodeSlow.
const ActionSlow = "look at the disk of the state directory: a small synced write takes too long there; it goes on when the disk does"
