package shipper

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// capture is one epoch on its way into the spool.
type capture struct {
	vm       *VM
	epoch    Epoch
	manifest *spool.Manifest
	draft    *spool.Draft
	unknown  map[string]int64 // by disk: unknown entries when its checksum was taken
	open     string           // why the epoch is no state of the VM; empty: closed
	room     int64            // blocks that may still be captured
	unread   bool             // a disk is no disk now: all of it went back
	prefix   bool             // the rest of the change set waits for room

	files      map[*disk]string // the leaf of each complete disk at the seal, by its id in the change log
	plain      map[string]bool  // of them, those that are no translated disk's
	translated map[*disk]*translation
}

// leaveOpen notes the first reason why this epoch is never offered.
func (c *capture) leaveOpen(reason string) {
	if c.open == "" {
		c.open = reason
	}
}

// spool writes the segments and, last, the manifest.
func (c *capture) spool(ctx context.Context, disks []*disk) error {
	if err := c.vm.drain(ctx, c.epoch); err != nil {
		return err
	}
	defer c.closeChains()
	if err := c.translate(disks); err != nil {
		return err
	}
	if err := c.budget(disks); err != nil {
		return err
	}
	c.narrow()
	st := c.vm.state.get()
	draft, err := c.vm.deps.Spool.Begin(st.Generation, c.epoch.Number())
	if err != nil {
		return err
	}
	c.draft = draft
	c.manifest = c.newManifest(st.Generation)
	err = c.write(ctx)
	if err == nil {
		err = draft.Commit(c.manifest)
	}
	if err != nil {
		return errors.Join(err, draft.Abort())
	}
	return nil
}

// write fills the draft and its manifest.
func (c *capture) write(ctx context.Context) error {
	for _, d := range c.vm.disks() {
		if d.state.get().Key == "" {
			continue // not known to the target yet
		}
		err := c.disk(ctx, d)
		if err != nil && !c.vm.stillHere(d) {
			c.vm.capture.wake() // its file is closed: the next epoch does not have it
			return fmt.Errorf("disk %s: %w", d.src.Name(), errRetired)
		}
		if err != nil {
			return err
		}
	}
	c.judge()
	c.vm.opts.Hook(PointBeforeManifest)
	if c.epoch.Voided() {
		return errVoid
	}
	return nil
}

func (c *capture) newManifest(generation uint64) *spool.Manifest {
	return &spool.Manifest{
		VM: c.vm.opts.Name, VMID: c.vm.opts.ID, Generation: generation, Epoch: c.epoch.Number(),
		Previous: c.vm.newestManifest(), EpochUUID: uuid.UUID(c.epoch.UUID()).String(), SealedAt: c.epoch.Time().UTC(),
	}
}

func (c *capture) giveBack(id string, ed EpochDisk) {
	var all []FileRange
	for r := range ed.List(0) {
		all = append(all, r)
	}
	c.epoch.Return(id, all...)
}

// disk writes the segment of one disk and its line in the manifest.
func (c *capture) disk(ctx context.Context, d *disk) error {
	info, _ := d.info()
	md := spool.ManifestDisk{ID: d.src.ID(), Name: d.src.Name(), Format: info.Format, State: spool.Initial, VirtualSize: info.VirtualSize}
	file, complete := c.files[d]
	ed, known := c.epoch.Disk(file)
	if complete && !known {
		c.vm.capture.wake() // its image was removed before the seal: the next epoch knows whether the disk was
		return fmt.Errorf("disk %s: %w", d.src.Name(), errRetired)
	}
	if complete {
		md.State, md.FileSize = spool.Complete, ed.FileSize()
		if c.suspect(d, ed) {
			c.leaveOpen(fmt.Sprintf("disk %s: regions wait for their comparison", d.src.Name()))
		}
		segment := func() error { return c.segment(ctx, d, ed, &md) }
		if tr := c.translated[d]; tr != nil {
			segment = func() error { return c.segmentTranslated(ctx, tr, &md) }
		}
		if err := segment(); err != nil {
			return fmt.Errorf("disk %s: capture of epoch %d: %w", d.src.Name(), c.epoch.Number(), err)
		}
	}
	c.manifest.Disks = append(c.manifest.Disks, md)
	return nil
}

// judge decides whether the epoch is a state of the VM (DESIGN §4, closed or open).
func (c *capture) judge() {
	if c.epoch.Torn() {
		c.leaveOpen("a block could not be saved before the guest overwrote it")
	}
	named := map[string]bool{}
	for _, md := range c.manifest.Disks {
		d := c.vm.diskByID(md.ID)
		doubted := d != nil && d.table() != nil && d.table().UnknownCount() > c.unknown[md.ID]
		if md.State == spool.Complete && (!md.SumKnown || doubted) {
			c.leaveOpen(fmt.Sprintf("disk %s: blocks of unknown content at the target", md.Name))
		}
		if ed, known := c.epoch.Disk(c.files[d]); md.State == spool.Complete && d != nil && known && c.suspect(d, ed) { // by now: it may have been changed under the capture
			c.leaveOpen(fmt.Sprintf("disk %s: regions wait for their comparison", md.Name))
		}
		if tr := c.translated[d]; tr != nil && tr.chain != nil {
			if name := tr.unsettled(c.epoch.Time()); name != "" {
				c.leaveOpen(fmt.Sprintf("disk %s: its parent %s, which is not tracked, was written just now: let parents alone, or write to them at the mount, as images of the same VM", md.Name, name))
			}
		}
		if named[md.Name] { // an export would write one over the other
			c.leaveOpen(fmt.Sprintf("two disks were named %s while it was captured", md.Name))
		}
		named[md.Name] = true
	}
	c.manifest.Closed, c.manifest.OpenReason = c.open == "", c.open
}

// suspect tells whether what the epoch has of a disk may be none of its states.
func (c *capture) suspect(d *disk, ed EpochDisk) bool {
	tr := c.translated[d]
	return ed.SuspectAtSeal() || tr != nil && tr.suspectBelow()
}
