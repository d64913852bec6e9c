package failpoint

import (
	"slices"

	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/resync"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/dir"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// All lists every failpoint that an appliance with a directory target has, room by room.
func All() []string {
	return slices.Concat(journal.Points(), spool.Points(), shipper.Points(), resync.Points(), retention.Points(), dir.Points())
}
