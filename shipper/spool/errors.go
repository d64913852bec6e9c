package spool

import "errors"

// What can be wrong with a document of the spool, or with what it lists.
var (
	ErrMagic     = errors.New("not a spool document")
	ErrVersion   = errors.New("spool document of a newer program")
	ErrChecksum  = errors.New("spool document checksum mismatch")
	ErrTruncated = errors.New("spool document truncated")
	ErrMalformed = errors.New("spool document malformed")
	ErrMissing   = errors.New("segment is missing from the spool")
	ErrSegment   = errors.New("segment differs from its manifest")
)

// What the spool refuses in its present state.
var (
	// ErrUnsettled: a manifest that was not to be could not be durably unlinked. It may be there after a power cut, so its
	// epoch must not be merged back and nothing may be captured until Settle succeeds.
	ErrUnsettled = errors.New("spool unsettled: a failed manifest may still exist")
	// ErrGivingUp: a give-up is intended and not finished. An open draft is void.
	ErrGivingUp = errors.New("spool is giving up epochs")
	// ErrDamaged: an epoch in the spool cannot be used; it and everything after it must be given up first.
	ErrDamaged = errors.New("spool is damaged")
	// ErrDraft: there is a draft already, or this one is finished.
	ErrDraft = errors.New("draft of an epoch")
	// ErrChain: the epoch does not follow the newest one in the spool, or is not the oldest one.
	ErrChain = errors.New("epoch out of order")
	// ErrUnknown: the spool has no such epoch, or no such disk in it.
	ErrUnknown = errors.New("not in the spool")
	// ErrManifest: a manifest does not describe its draft, or an update changes more than it may. A bug of the caller.
	ErrManifest = errors.New("manifest does not fit")
)
