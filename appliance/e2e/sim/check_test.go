package sim

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// leftWithSpool is a host whose target was away, so that its spool holds epochs of what two guests wrote.
func leftWithSpool(t *testing.T, w *world) *host {
	w.vms, w.saves, w.regions, w.interval = []string{"vm"}, false, journal.DefaultActivityRegions, 9*time.Second
	h := w.bareHost(newLife(w.turns))
	w.addImage(h, "vm", "b.vhd")
	if err := w.boot(h); err != nil {
		t.Fatal(err)
	}
	m := w.active().machine("vm")
	if err := w.settle(m); err != nil {
		t.Fatal(err)
	}
	w.fate.with(func(f *fate) { f.mu.target = []armed{{kind: fake.Refuse, every: 1, outage: true}} })
	for i := range 3 {
		data := make([]byte, 3*page)
		fill(data, uint64(3*i+1))
		w.issue(m, m.all()[0], extent.Change{Off: int64(i) * page, Len: 3 * page}, data)
		<-time.After(20 * time.Second)
	}
	p := w.active()
	if len(m.spool.Manifests()) < 3 {
		t.Fatalf("%d epochs in the spool", len(m.spool.Manifests()))
	}
	p.life.kill()
	left := p.remains(false)
	p.bury()
	return left
}

func (d *stateDisk) flip(path string, at func(size int) int) {
	d.Damage(path, func(data []byte) []byte { data[at(len(data))] ^= 1; return data })
}

func middle(size int) int { return size / 2 }

func offset(at int) func(int) int { return func(int) int { return at } }

// Every kind of damage is named with its file and what to do.
func TestJournalCheckSaysWhatIsBroken(t *testing.T) {
	const tableEntry = 2*page + 8 // a byte of the second entry, behind two slots for the header
	for name, c := range map[string]struct {
		damage func(h *host) (file string)
		want   error
	}{
		"nothing": {func(*host) string { return "" }, nil},
		"segment gone": {func(h *host) string {
			path := h.tree.files("/state", ".seg")[0]
			_ = h.tree.Remove(path)
			return path
		}, spool.ErrMissing},
		"segment rotten": {func(h *host) string {
			path := h.tree.files("/state", ".seg")[1]
			h.tree.flip(path, middle)
			return path
		}, spool.ErrSegment},
		"manifest of the middle gone": {func(h *host) string {
			path := h.tree.files("/state", "manifest.json")[1]
			_ = h.tree.Remove(path)
			return "/spool/vm"
		}, spool.ErrChain},
		"table rotten": {func(h *host) string {
			path := h.tree.files("/state", ".table")[0]
			h.tree.flip(path, offset(tableEntry))
			return path
		}, shipper.ErrContradiction},
		"table gone": {func(h *host) string {
			path := h.tree.files("/state", ".table")[0]
			_ = h.tree.Remove(path)
			return path
		}, nil},
		"table cut short": {func(h *host) string {
			path := h.tree.files("/state", ".table")[0]
			h.tree.Damage(path, func(data []byte) []byte { return data[:len(data)-page] })
			return path
		}, checksum.ErrTruncated},
		"journal older than the spool": {func(h *host) string {
			h.put(t, "epoch/", `{"reserved":1}`)
			return "/state/" // spool and table say so, each
		}, shipper.ErrContradiction},
		"record without an owner": {func(h *host) string {
			h.put(t, "vm/", `{"id":"other"}`)
			return "journal"
		}, journal.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			var found []*shipper.Finding
			var file string
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(1, t.TempDir())
				h := leftWithSpool(t, w)
				file = c.damage(h)
				found = h.check()
				for _, wrong := range w.mu.wrong {
					t.Error(wrong)
				}
			})
			if (len(found) > 0) != (file != "") {
				t.Fatalf("found %v", found)
			}
			for _, f := range found {
				if !strings.Contains(f.Error(), file) || c.want != nil && !errors.Is(f, c.want) {
					t.Errorf("%v, expected %v of %s", f, c.want, file)
				}
				if f.File != "journal" && f.Action == "" {
					t.Errorf("%v: no action", f)
				}
			}
		})
	}
}

// A table into which a crash left half of an epoch is no violation: the redo enters the other half. What neither that epoch nor
// an older one has is one.
func TestJournalCheckKnowsAHalfEnteredEpoch(t *testing.T) {
	const entry = 2*page + 8 // the second of the table
	for name, flip := range map[string]bool{"half entered": false, "rotten": true} {
		t.Run(name, func(t *testing.T) {
			var found []*shipper.Finding
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(1, t.TempDir())
				h := leftWithSpool(t, w) // its epochs carry block 1 one after the other
				path := h.tree.files("/state", ".table")[0]
				var older []byte
				h.tree.Damage(path, func(data []byte) []byte { older = bytes.Clone(data); return data })
				if err := w.boot(h); err != nil {
					t.Fatal(err)
				}
				p := w.active()
				w.fate.with(func(f *fate) { f.mu.at[shipper.PointAfterTable] = 1 })
				data := make([]byte, page)
				fill(data, 77)
				w.issue(p.machine("vm"), p.machine("vm").all()[0], extent.Change{Off: page, Len: page}, data)
				<-p.life.died
				left := p.remains(false)
				p.bury()
				left.tree.Damage(path, func(data []byte) []byte {
					newer := bytes.Clone(data[entry : entry+8])
					copy(data, older)
					copy(data[entry:], newer)
					return data
				})
				if flip {
					left.tree.flip(path, offset(entry))
				}
				found = left.check()
			})
			if (len(found) > 0) != flip {
				t.Errorf("found %v", found)
			}
		})
	}
}

// put replaces the value of the one key with a prefix.
func (h *host) put(t *testing.T, prefix, value string) {
	var b kv.Batch
	if err := h.store.Scan([]byte(prefix), func(k, _ []byte) error { b.Put(k, []byte(value)); return nil }); err != nil || b.Len() != 1 {
		t.Fatalf("%d records of %s, %v", b.Len(), prefix, err)
	}
	h.store.Before = func(int, *kv.Batch) memory.Fault { return memory.None }
	if err := h.store.Apply(&b); err != nil {
		t.Fatal(err)
	}
}
