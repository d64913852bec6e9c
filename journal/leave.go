package journal

// ReturnDisk merges back everything the seal took of a disk that this epoch does
// not carry at all, one in initial replication: the epoch stays a state of the
// others. Call it after Wait.
func (s *Sealed) ReturnDisk(diskID string) {
	for _, sd := range s.Disks {
		if sd.Disk.id != diskID {
			continue
		}
		s.vm.merge(func(p *phase) { p.set(sd.Disk.index).Or(sd.changes) })
		sd.drop([]blockRange{{Start: 0, End: max(sd.pending.Load().End(), sd.changes.End())}})
		sd.whole.Store(false)
	}
}
