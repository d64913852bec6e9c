package fake

import (
	"errors"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// statuses are the service's own (AZURE.md 1.1, 1.4), first match.
var statuses = []struct {
	err    error
	status int
}{
	{target.ErrNotFound, 404},
	{target.ErrExists, 409},
	{target.ErrSnapshots, 409},
	{target.ErrCondition, 412},
	{target.ErrSequence, 412},
	{target.ErrLeased, 412},
	{target.ErrChecksum, 400},
	{target.ErrTooLarge, 413},
	{target.ErrRange, 416},
	{target.ErrName, 400},
	{target.ErrAuth, 403},
	{target.ErrThrottled, 503},
}

// refused is the service's answer to op.
func refused(op Op, err error) *target.Error {
	e := target.Refused(op.Method, op.Name, err)
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			e.Status = s.status
			break
		}
	}
	return e
}
