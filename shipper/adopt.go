package shipper

// Adopt makes this host the VM's writer, whoever was it: a new generation, and a
// comparison of the disks with the replicas that are there. Replicas that others put
// there are taken for the disks that have none yet. It returns when that is asked
// for durably; the connection does it.
func (v *VM) Adopt() error {
	if err := v.state.update(func(s *vmRecord) { s.Adopt = true }); err != nil {
		return err
	}
	for _, d := range v.disks() {
		if st := d.state.get(); st.Stage == StageComplete || st.Created {
			continue
		}
		if err := d.state.update(func(s *diskRecord) { s.Seed = true }); err != nil {
			return err
		}
	}
	v.mu.Lock()
	restart := v.mu.restart
	v.mu.Unlock()
	if restart != nil {
		restart(errRestart)
	}
	v.wakeAll()
	return nil
}

// noteConnected says once that generation and records are known.
func (v *VM) noteConnected() {
	v.mu.Lock()
	select {
	case <-v.connected:
	default:
		close(v.connected)
	}
	v.mu.Unlock()
	v.notify()
}

// Connected tells whether generation and records are known.
func (v *VM) Connected() bool {
	select {
	case <-v.connected:
		return true
	default:
		return false
	}
}
