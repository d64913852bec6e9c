package image

import (
	"errors"
	"fmt"
	"strings"
)

// What Probe and ParseFooter say about a file; test with errors.Is.
var (
	// ErrUnsupported: a valid or likely image of a format that is not protected. Info.Format names it.
	ErrUnsupported = errors.New("image format is not protected")
	// ErrNotYet: too short, or without a footer or signature; most likely it is still being copied in. Probe again.
	ErrNotYet = errors.New("not a complete image yet")
	// ErrInvalid: a field contradicts the specification or the file.
	ErrInvalid = errors.New("invalid image")
)

// What exactly is wrong, where a field is more than merely out of range. Each is one of the above as well.
var (
	// ErrMagic: the bytes that every image of the format has are not there.
	ErrMagic = fmt.Errorf("%w: wrong signature", ErrInvalid)
	// ErrVersion: a version of the format that is not known.
	ErrVersion = fmt.Errorf("%w: unknown version", ErrInvalid)
	// ErrChecksum: the structure is damaged.
	ErrChecksum = fmt.Errorf("%w: wrong checksum", ErrInvalid)
	// ErrTruncated: the image says that there is more than the file has; it may still be growing.
	ErrTruncated = fmt.Errorf("%w: truncated", ErrNotYet)
	// ErrFeature: the image needs a feature that is not understood.
	ErrFeature = fmt.Errorf("%w: unknown feature", ErrUnsupported)
)

// ErrParent: bytes of a differencing image are its parent's, and there is none at hand or it is the wrong one.
var ErrParent = errors.New("the parent image is missing")

// Error says which field of an image is wrong, where it lies and what was expected. It unwraps to Err.
type Error struct {
	Path     string // as given to Probe; empty from ParseFooter
	Field    string
	Offset   FileOffset // of the field in the file; from ParseFooter relative to the footer
	Found    string
	Expected string
	Hint     string // the next action
	Err      error  // ErrUnsupported, ErrNotYet, ErrInvalid, or the error of a read
}

// Error formats the facts as one line.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Path != "" {
		fmt.Fprintf(&b, "%s: ", e.Path)
	}
	fmt.Fprintf(&b, "%v: %s at offset %d is %s", e.Err, e.Field, e.Offset, e.Found)
	if e.Expected != "" {
		fmt.Fprintf(&b, ", expected %s", e.Expected)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

// Unwrap returns the sentinel or the error of the read.
func (e *Error) Unwrap() error { return e.Err }

// at completes an error of ParseFooter with the file and the place of the footer in it.
func (e *Error) at(path string, base FileOffset) *Error {
	c := *e
	c.Path = path
	c.Offset += base
	return &c
}
