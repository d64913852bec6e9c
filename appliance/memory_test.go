package appliance

import (
	"math"
	"runtime/debug"
	"testing"
)

func TestMemoryLimitFollowsTheDisks(t *testing.T) {
	for _, c := range []struct{ virtual, want int64 }{
		{0, 144 << 20},
		{1 << 40, (144 + 96) << 20},
		{8 << 40, (144 + 8*96) << 20},
		{24 << 30, 144<<20 + 24*1024*96}, // 96 bytes a MiB
	} {
		if got := memoryLimit(c.virtual); got != c.want {
			t.Errorf("%d bytes of disks: limit %d, want %d", c.virtual, got, c.want)
		}
	}
}

// An operator's GOMEMLIMIT stands.
func TestMemoryLimitOfTheEnvironmentStands(t *testing.T) {
	old := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(old)
	a := &Appliance{}
	a.mu.machines = map[string]*machine{}
	debug.SetMemoryLimit(1 << 30)
	a.limitMemory()
	if got := debug.SetMemoryLimit(-1); got != 1<<30 {
		t.Errorf("a limit that was set became %d", got)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	a.limitMemory()
	if got := debug.SetMemoryLimit(-1); got != memoryFixed {
		t.Errorf("without disks the limit is %d, want %d", got, memoryFixed)
	}
}
