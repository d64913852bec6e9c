package journal

import "github.com/vhdrelay/vhdrelay/journal/extent"

// Changed says whether a block of r is in the current change set, or in that of
// an epoch that has not ended. It is for checks: while guests write the answer is
// old when it is read.
func (d *Disk) Changed(r extent.Range[extent.FileBlock]) bool {
	if d.vm.phase.Load().set(d.index).Any(r) {
		return true
	}
	s := d.vm.sealed.Load()
	if s == nil {
		return false
	}
	sd := s.disk(d)
	return sd != nil && sd.changes.Any(r)
}
