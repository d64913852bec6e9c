package shipper

// gate is a mutex that may be held over network I/O and the waits between two
// tries. Unlike with a sync.Mutex, who waits for it counts as waiting where time
// is virtual, so that tests see the waits of the holder end.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) Lock() { g <- struct{}{} }

func (g gate) Unlock() { <-g }

// TryLock locks the gate unless it is locked.
func (g gate) TryLock() bool {
	select {
	case g <- struct{}{}:
		return true
	default:
		return false
	}
}
