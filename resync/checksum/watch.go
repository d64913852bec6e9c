package checksum

import (
	"fmt"
	"slices"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Watch stands between looking at a block and entering what was seen. A block
// that is forgotten meanwhile stays unknown: whoever forgot it relied on that
// (an evicted region has no other record that its block changed).
type Watch struct {
	t         *Table
	forgotten extent.Set[extent.DiskBlock] // guarded by the table's update
}

// Watch begins one; it is for reading a block after that. Close it.
func (t *Table) Watch() *Watch {
	t.update.Lock()
	defer t.update.Unlock()
	w := &Watch{t: t}
	t.update.watches = append(t.update.watches, w)
	return w
}

// Close ends the watch.
func (w *Watch) Close() {
	w.t.update.Lock()
	defer w.t.update.Unlock()
	w.t.update.watches = slices.DeleteFunc(w.t.update.watches, func(have *Watch) bool { return have == w })
}

// noteForgottenLocked tells the watches.
func (t *Table) noteForgottenLocked(set extent.Set[extent.DiskBlock]) {
	for _, w := range t.update.watches {
		w.forgotten = w.forgotten.Union(set)
	}
}

// Learn is Table.Learn for the entries of r that are unknown and have not been
// forgotten since the watch began; the others stay what they are.
func (w *Watch) Learn(r extent.Range[extent.DiskBlock], sums []Sum) error {
	t := w.t
	t.update.Lock()
	defer t.update.Unlock()
	if err := t.broken(); err != nil {
		return err
	}
	if err := fits(r, sums, t.update.header.blocks); err != nil {
		return fmt.Errorf("learning what %s holds: %w", t.path, err)
	}
	var open extent.Set[extent.DiskBlock]
	for run := range t.unknown.Ranges(r, 0) {
		open.Add(run)
	}
	for _, run := range open.Subtract(w.forgotten).Ranges() {
		v := values{fill: ZeroBlock}
		if sums != nil {
			v.sums = sums[run.Start-r.Start : run.End-r.Start]
		}
		if err := t.putLocked(run, v); err != nil {
			return t.fail(err)
		}
	}
	if err := t.flushLocked(); err != nil {
		return t.fail(err)
	}
	return nil
}
