package appliance

import (
	"math"
	"runtime/debug"
)

// The memory budget, in bytes: what the runtime may hold before it collects
// harder. DESIGN §8 allows 192 MiB and 96 MiB a TiB resident; the rest is for what
// the runtime does not count (the binary, the journal's mappings, stacks).
const (
	memoryFixed  = 144 << 20
	memoryPerTiB = 96 << 20
)

// limitMemory keeps the garbage collector within the budget for the disks that
// are attached. A GOMEMLIMIT in the environment stands.
func (a *Appliance) limitMemory() {
	if debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return
	}
	var virtual int64
	for _, m := range a.machines() {
		virtual += m.virtualSize()
	}
	debug.SetMemoryLimit(memoryLimit(virtual))
}

func memoryLimit(virtual int64) int64 {
	const mib, mibPerTiB = 1 << 20, 1 << 20 // in MiB, so that the product does not overflow
	return memoryFixed + virtual/mib*(memoryPerTiB/mibPerTiB)
}
