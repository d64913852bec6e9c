package segment

import (
	"errors"
	"fmt"
)

// What can be wrong with bytes that claim to be a segment. ErrMagic, ErrVersion, ErrChecksum and ErrTruncated are about the
// bytes; ErrMalformed means that the checksums are right and the content is not: a bug of the writer or a forgery.
var (
	ErrMagic     = errors.New("not a segment: wrong magic")
	ErrVersion   = errors.New("segment of a newer format version")
	ErrChecksum  = errors.New("segment checksum mismatch")
	ErrTruncated = errors.New("segment truncated")
	ErrMalformed = errors.New("segment malformed")
)

// What a caller of Writer can do wrong.
var (
	ErrClosed  = errors.New("segment writer is closed")
	ErrOrder   = errors.New("segment extent out of order")
	ErrBounds  = errors.New("segment extent out of bounds")
	ErrPayload = errors.New("segment payload does not match its checksums")
	ErrLevel   = errors.New("unknown compression level")
	ErrName    = errors.New("segment name too long")
)

// Error says which part of a segment is wrong, and where. Err is one of the sentinels, or the error of the reader below.
type Error struct {
	Part   string // "header", "frame 3", "index", "trailer"
	Offset int64  // byte of the file at which the part, or the offending field in it, starts
	Detail string // found and expected, if there is more to say
	Err    error
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("segment %s at byte %d: %v", e.Part, e.Offset, e.Err)
	}
	return fmt.Sprintf("segment %s at byte %d: %v: %s", e.Part, e.Offset, e.Err, e.Detail)
}

func (e *Error) Unwrap() error { return e.Err }

func bad(err error, part string, off int64, format string, args ...any) *Error {
	return &Error{Part: part, Offset: off, Err: err, Detail: fmt.Sprintf(format, args...)}
}
