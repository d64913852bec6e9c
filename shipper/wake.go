package shipper

// Wake ends every wait of every stage: somebody is looking. It never blocks.
func (v *VM) Wake() { v.wakeAll() }
