package restore

import (
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// What can be wrong with a point, for errors.Is.
var (
	ErrDiffers     = errors.New("content differs from its record")
	ErrSegment     = errors.New("segment is not what its record says")
	ErrNoDisk      = errors.New("disk is not part of the recovery point")
	ErrNoBase      = errors.New("no snapshot to start from")
	ErrPruned      = errors.New("pruned meanwhile")
	ErrPinLost     = errors.New("pin could not be kept")
	ErrExists      = errors.New("output exists")
	ErrOtherExport = errors.New("unfinished export of something else")
	ErrBusy        = errors.New("another export writes it")
	ErrCursor      = errors.New("cursor of an export is not readable")
	ErrFormat      = errors.New("format cannot be exported")
)

// DiffersError says which disk of which point is not what it was.
type DiffersError struct {
	VM, Disk string // names
	Point    catalog.PointID
	Want     checksum.Sum // by the record
	Got      checksum.Sum
}

func (e *DiffersError) Error() string {
	return fmt.Sprintf("%s/%s at %s: %v: CRC-64 %s, recorded %s", e.VM, e.Disk, e.Point, ErrDiffers,
		catalog.FormatSum(e.Got), catalog.FormatSum(e.Want))
}

// Unwrap makes it ErrDiffers.
func (e *DiffersError) Unwrap() error { return ErrDiffers }

// RetryClass, ErrorCode and ErrorAction are what package retry asks of an error.
func (e *DiffersError) RetryClass() retry.Class { return retry.NonRecoverable }

// ErrorCode is stable.
func (e *DiffersError) ErrorCode() string { return "point-differs" }

// ErrorAction is the next action.
func (e *DiffersError) ErrorAction() string {
	return "Use an older point, and run: vhdrelay resync --deep."
}

// SegmentError names the segment that is missing, damaged, or another one.
type SegmentError struct {
	Blob string
	Err  error
}

func (e *SegmentError) Error() string { return fmt.Sprintf("segment %s: %v", e.Blob, e.Err) }

// Unwrap gives ErrSegment and the cause.
func (e *SegmentError) Unwrap() []error { return []error{ErrSegment, e.Err} }
