package spool

import (
	"errors"

	"github.com/vhdrelay/vhdrelay/journal/durable/platter"
)

var errInjected = errors.New("injected")

// disk is a disk in memory that counts operations, fails some, and calls back before each.
type disk struct {
	*platter.Disk
	ops    int
	before func(op int)                    // nil: not
	fail   func(op int, name string) error // nil: nothing fails
	trace  func(op int, name, path string) // nil: not
}

func newDisk() *disk {
	d := &disk{}
	d.Disk = platter.New(platter.Hooks{Begin: d.begin})
	return d
}

func (d *disk) begin(name, path string) error {
	d.ops++
	if d.before != nil {
		d.before(d.ops)
	}
	if d.trace != nil {
		d.trace(d.ops, name, path)
	}
	if d.fail != nil {
		return d.fail(d.ops, name)
	}
	return nil
}

// crash returns what a power cut now would leave.
func (d *disk) crash(keep func() bool) *disk {
	return &disk{Disk: d.After(platter.Hooks{}, true, keep)}
}
