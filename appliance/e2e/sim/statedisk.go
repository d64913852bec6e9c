package sim

import (
	"strings"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/durable/platter"
)

const page = 4096 // what a power cut keeps or loses as a whole

// stateDisk is a state directory's file system in memory.
type stateDisk struct {
	*platter.Disk
	life  *life
	slow  func(op, path string) int   // how long an operation takes, in parts of a turn; nil: no time
	fail  func(op, path string) error // nil: nothing fails
	trace func(op, path string)       // of operations that changed what is durable; nil: not
	grown func(spool int64)           // after the files below a directory named spool grew; nil: not
	spool atomic.Int64                // bytes in files below a directory named spool
}

func newStateDisk(l *life) *stateDisk {
	d := &stateDisk{life: l}
	d.Disk = platter.New(d.hooks())
	return d
}

func (d *stateDisk) hooks() platter.Hooks {
	return platter.Hooks{Begin: d.begin, Enter: func() error { return d.life.check() }, Synced: d.synced, Resized: d.resized}
}

func (d *stateDisk) begin(op, path string) error {
	if op == "stat" || op == "close" { // answered from memory
		return nil
	}
	if d.slow != nil {
		d.life.pause(d.slow(op, path))
	}
	if d.fail != nil && d.life.isAlive() {
		return d.fail(op, path)
	}
	return nil
}

func (d *stateDisk) synced(op, path string) {
	if op == "syncdir" {
		op = "sync directory"
	}
	if d.trace != nil && d.life.isAlive() {
		d.trace(op, path)
	}
}

func (d *stateDisk) resized(path string, by int64) {
	if !inSpool(path) {
		return
	}
	if now := d.spool.Add(by); by > 0 && d.grown != nil {
		d.grown(now)
	}
}

func inSpool(path string) bool { return strings.Contains(path, "/spool/") }

// after is the file system that another process finds.
func (d *stateDisk) after(l *life, cut bool, keep func() bool) *stateDisk {
	next := &stateDisk{life: l}
	next.Disk = d.After(next.hooks(), cut, keep)
	next.Files(func(path string, size int64) {
		if inSpool(path) {
			next.spool.Add(size)
		}
	})
	return next
}
