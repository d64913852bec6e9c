package appliance

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// life is how a reason comes, and the action that mends it.
type life struct {
	extra string // lines of the config
	come  func(b *bubble)
	mend  func(b *bubble)
}

func (b *bubble) resume() {
	b.t.Helper()
	_, err := b.a.Resume(b.t.Context(), "web")
	b.must(err)
}

func (b *bubble) unprotect(erase bool) error {
	_, err := b.a.Unprotect(b.t.Context(), "web", control.UnprotectOptions{DeleteReplica: erase})
	return err
}

// seize is what another host's adoption does to vm.json.
func (b *bubble) seize() {
	b.t.Helper()
	_, err := catalog.UpdateVM(b.t.Context(), b.target, "web", func(d *catalog.VMDoc) error {
		d.Generation++
		d.Owner.Host = "the other one"
		return nil
	})
	b.must(err)
}

func (b *bubble) drop(name string) {
	b.t.Helper()
	path := filepath.Join(b.source, name)
	id, err := fs.Identify(path)
	b.must(err)
	b.must(os.Remove(path))
	b.store.Removed(name, id)
}

// fills writes so many MiB of new content, an MiB each five seconds.
func (b *bubble) fills(n int) {
	for i := range n {
		b.write("web/os.img", int64(i)*mib, mib)
		b.idle(5 * time.Second)
	}
}

// chainBase is what the image that putLeaf makes lies over.
var chainBase = imagetest.NewVHD(4*mib, 2*mib, 1, nil, "")

func (b *bubble) putLeaf() {
	b.put("web/leaf.avhd", imagetest.NewVHD(4*mib, 2*mib, 2, chainBase, "base.vhd").File())
}

var lives = map[string]life{
	health.Retrying:   {come: func(b *bubble) { b.down(syscall.ECONNREFUSED); b.write("web/os.img", 0, 4096) }, mend: (*bubble).up},
	health.CannotSend: {come: func(b *bubble) { b.down(target.ErrAuth); b.write("web/os.img", 0, 4096) }, mend: func(b *bubble) { b.up(); b.resume() }},
	health.Defect:     {come: func(b *bubble) { b.down(target.ErrRange); b.write("web/os.img", 0, 4096) }, mend: func(b *bubble) { b.up(); b.resume() }},
	health.Fenced:     {come: func(b *bubble) { b.seize(); b.write("web/os.img", 0, 4096) }, mend: func(b *bubble) { b.must(b.unprotect(false)) }},
	health.ResyncRequired: {extra: "replication: {spool_limit: 16777216, compression: \"off\"}\n",
		come: func(b *bubble) { b.down(syscall.ECONNREFUSED); b.fills(28) }, mend: (*bubble).up},
	health.SpoolOverHalf: {extra: "replication: {spool_limit: 16777216, compression: \"off\"}\n",
		come: func(b *bubble) { b.down(syscall.ECONNREFUSED); b.fills(10); b.idle(30 * time.Second) }, mend: (*bubble).up},
	health.CyclesMissed: {come: func(b *bubble) { b.down(syscall.ECONNREFUSED); b.pass("web/os.img", 20*time.Minute) }, mend: (*bubble).up},
	health.CycleLatency: {come: func(b *bubble) { b.down(syscall.ECONNREFUSED); b.pass("web/os.img", 15*time.Minute) }, mend: (*bubble).up},
	health.RPOExceeded: {come: func(b *bubble) {
		b.down(syscall.ECONNREFUSED)
		b.write("web/os.img", 0, 4096)
		b.idle(62 * time.Minute)
	},
		mend: func(b *bubble) {
			b.up()
			_, err := b.a.Sync(b.t.Context(), "web", true, nil)
			b.must(err)
		}},
	health.InitialUnfinished: {come: func(b *bubble) {
		b.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "CreatePages" && filepath.Base(op.Name) == "replica.vhd" {
				return fake.Fault{Kind: fake.Refuse, Err: syscall.ECONNREFUSED}
			}
			return fake.Fault{}
		})
		b.put("web/new.img", make([]byte, mib))
		b.attach("web/new.img")
	}, mend: (*bubble).up},
	health.VMPaused: {come: func(b *bubble) {
		_, err := b.a.Pause(b.t.Context(), "web")
		b.must(err)
		b.write("web/os.img", 0, 4096)
	}, mend: (*bubble).resume},
	health.BadImage: {come: func(b *bubble) {
		torn := vhd(make([]byte, mib))
		torn[len(torn)-100] ^= 1
		b.put("web/new.vhd", torn)
		b.attach("web/new.vhd")
	}, mend: func(b *bubble) { b.put("web/new.vhd", vhd(make([]byte, mib))); b.resume() }},
	health.ChainBroken: {come: func(b *bubble) { b.putLeaf(); b.attach("web/leaf.avhd") }, mend: func(b *bubble) {
		b.put("web/base.vhd", chainBase.File())
		b.attach("web/base.vhd") // at the mount: it is looked at again
	}},
	health.ImageIncomplete: {come: func(b *bubble) { b.put("web/new.vhd", nil); b.attach("web/new.vhd") },
		mend: func(b *bubble) { b.put("web/new.vhd", vhd(make([]byte, mib))); b.idle(time.Minute) }},
	health.JournalFailing: {come: func(b *bubble) {
		b.failing.Store(true)
		b.write("web/os.img", 8*mib, 4096)
	}, mend: func(b *bubble) { b.failing.Store(false) }},
	health.UnprotectedFormat: {come: func(b *bubble) { b.put("web/old.qcow2", []byte("QFI\xfb")); b.must(b.store.survey()) },
		mend: func(b *bubble) { b.must(os.Remove(filepath.Join(b.source, "web/old.qcow2"))); b.must(b.store.survey()) }},
	health.NoDisks: {come: func(b *bubble) { b.drop("web/os.img") }, mend: func(b *bubble) { b.must(b.unprotect(false)) }},
	health.Leaving: {come: func(b *bubble) { b.down(target.ErrAuth); _ = b.unprotect(true) }, mend: func(b *bubble) { b.up(); b.must(b.unprotect(true)) }},
}

// elsewhere are the codes whose situation needs a mount, or a moment that virtual
// time passes at once; the test that has it.
var elsewhere = map[string]string{
	health.ImageUntracked:   "TestI9_UnusableSpool",
	health.ImageRefused:     "TestReasonsOfComposedFacts: a file that takes neither a tracker nor a mark",
	health.Resynchronizing:  "TestJudge: a comparison takes no virtual time",
	health.StateDiskFull:    "TestI9_SmallStateDiskUnderLoad",
	health.ComparisonFailed: "TestJudge: an image that cannot be read is not to be had here",
}

// TestI12_EveryReasonComesAndGoes: each code's situation, with the severity of the
// table and an action; then the action; then the VM is Normal again.
func TestI12_EveryReasonComesAndGoes(t *testing.T) {
	for _, m := range health.Codes {
		x, here := lives[m.Code]
		if _, there := elsewhere[m.Code]; here == there && !byStore(m.Code) {
			t.Errorf("%s: has a situation %v, or has it elsewhere %v", m.Code, here, there)
		}
		if !here {
			continue
		}
		t.Run(m.Code, func(t *testing.T) {
			inBubble(t, x.extra, oneImage(), func(b *bubble) {
				b.within(time.Minute, "web", "Normal", replicating)
				x.come(b)
				v := b.within(time.Minute, "web", "its reason", hasReason(m.Code))
				i := slices.IndexFunc(v.Reasons, func(r control.Reason) bool { return r.Code == m.Code })
				if r := v.Reasons[i]; r.Severity != m.Severity || r.Action == "" || r.Message == "" || r.Since.IsZero() || v.Health == control.HealthNormal {
					t.Errorf("%s: %+v", v.Health, r)
				}
				x.mend(b)
				b.within(2*time.Hour, "web", "Normal", normal)
			})
		})
	}
}

// byStore tells a code that a store gives by itself; its own tests have it.
func byStore(code string) bool {
	return slices.Contains([]string{health.ForeignWriter, health.StoreUnmounted, health.SourceShadowed, health.NestedMount, health.VMMoved, health.ConfigInvalid}, code)
}
