package appliance

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/dir"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// never is a window that is closed whenever a test may run.
func never() string {
	day := time.Now().AddDate(0, 0, 3).Weekday().String()[:3]
	return "resync: {window: {from: \"00:00\", to: \"00:01\", days: [" + day + "]}}\n"
}

// scribble changes blocks of a replica behind everybody's back.
func (r *rig) scribble(vm, disk string, blocks ...int64) {
	r.t.Helper()
	d, err := dir.Open(r.store, dir.Options{})
	r.must(err)
	name, ctx := catalog.ReplicaName(vm, disk), context.Background()
	r.must(d.BreakLease(ctx, name))
	for _, b := range blocks {
		page := make([]byte, 4096)
		r.must(d.ReadPages(ctx, name, "", b*4096, page))
		page[17] ^= 1
		r.must(d.PutPages(ctx, name, b*4096, page, checksum.Of(page), target.Unguarded))
	}
}

func (r *rig) resync(vm string, o control.ResyncOptions) control.Resync {
	r.t.Helper()
	res, err := r.client.Resync(r.ctx(), vm, "", o, nil)
	r.must(err)
	return res
}

// applied waits until the newest point is in the replica.
func (r *rig) applied(vm string) {
	r.t.Helper()
	r.await(vm, "apply", func(v control.VM) bool { return v.LastPoint != nil && v.AppliedEpoch == v.LastPoint.Epoch })
}

func (r *rig) verify(vm string) error {
	_, err := Verify(r.ctx(), r.config().Target, cli.VerifyRequest{VM: vm}, nil)
	return err
}

// Changed while nothing served it: marked, and compared in the window only, unless
// somebody asks for it at once. What is sent is what was changed.
func TestChangedBehindOurBackWaitsForTheWindow(t *testing.T) {
	r := newRig(t)
	content := r.content(8 * mib)
	r.put("web/os.img", content)
	r.start()
	r.sync("web")
	r.stop()
	for _, b := range []int{3, 400, 401, 1900} {
		content[b*4096] ^= 1
	}
	r.put("web/os.img", content)
	r.window = never()
	r.start()
	v := r.await("web", "mark", func(v control.VM) bool { return v.Resync.State == control.ResyncWaiting })
	if v.State != string(lifecycle.ResynchronizationRequired) || !hasReason("resynchronization-required")(v) || v.Health != control.HealthCritical {
		t.Errorf("%+v", v)
	}
	if res := r.resync("web", control.ResyncOptions{}); res.State != control.ResyncWaiting {
		t.Errorf("without --now: %+v", res)
	}
	res := r.resync("web", control.ResyncOptions{Now: true})
	if res.State != control.ResyncIdle || res.DifferingBytes != 4*4096 || res.ComparedBytes != 8*mib || res.Reason == "" || res.Ended.IsZero() {
		t.Errorf("%+v", res)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	p, err := r.client.Points(r.ctx(), "web")
	r.must(err)
	var sent int64
	for _, point := range p.Points[1:] {
		sent += point.Disks[0].ChangedBytes
	}
	if sent != 4*4096 {
		t.Errorf("%d bytes sent for %d", sent, 4*4096)
	}
}

// Cancelled, it is required still, over a restart too, and nothing that was compared
// is compared again; paused, it waits for its resume.
func TestCancelAndPauseKeepWhatIsWanted(t *testing.T) {
	r := newRig(t)
	content := r.content(4 * mib)
	r.put("web/os.img", content)
	r.start()
	r.sync("web")
	r.stop()
	content[5] ^= 1
	r.put("web/os.img", content)
	r.window = never()
	r.start()
	r.await("web", "mark", func(v control.VM) bool { return v.Resync.State == control.ResyncWaiting })
	m, err := r.app.find("web")
	r.must(err)
	if held, err := m.resync.pause(); !held || err != nil {
		t.Errorf("%v %v", held, err)
	}
	r.stop()
	r.window = always
	r.start()
	if v := r.vm("web"); v.Resync.State != control.ResyncPaused {
		t.Errorf("after a restart: %+v", v.Resync)
	}
	if m, err = r.app.find("web"); err != nil {
		t.Fatal(err)
	}
	if res := r.resync("web", control.ResyncOptions{Cancel: true}); res.State != control.ResyncWaiting {
		t.Errorf("cancelled: %+v", res)
	}
	if v := r.vm("web"); v.State != string(lifecycle.ResynchronizationRequired) {
		t.Errorf("cancelled: %s", v.State)
	}
	r.must(m.resync.resume()) // is about a pause, not about a cancel
	if v := r.vm("web"); v.Resync.State != control.ResyncWaiting {
		t.Errorf("resumed: %+v", v.Resync)
	}
	if res := r.resync("web", control.ResyncOptions{}); res.State != control.ResyncIdle || res.DifferingBytes != 4096 {
		t.Errorf("%+v", res)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if _, err := r.client.Resync(r.ctx(), "web", "", control.ResyncOptions{Cancel: true}, nil); !errors.Is(err, &control.Error{Code: "nothing-to-cancel"}) {
		t.Errorf("%v", err)
	}
	if held, err := m.resync.pause(); held || err != nil {
		t.Errorf("nothing to pause: %v %v", held, err)
	}
}

// The acceptance of issue 6 in small: exactly the damage is found, only its chunks
// are read back, the next point repairs it, and a second look is one request.
func TestDeepResync(t *testing.T) {
	r := newRig(t)
	content := r.content(16 * mib)
	r.put("web/os.img", content)
	r.window = never() // the mark alone must not start it
	r.start()
	r.sync("web")
	r.applied("web")
	if res := r.resync("web", control.ResyncOptions{Deep: true, Now: true}); res.Requests != 1 || res.ComparedBytes != 0 || !res.Deep || res.State != control.ResyncIdle {
		t.Errorf("untouched: %+v", res)
	}
	damage := []int64{1, 300, 301, 2000, 4000}
	r.scribble("web", "os.img", damage...)
	change := r.content(4096)
	r.change("web/os.img", 12*mib, change)
	copy(content[12*mib:], change)
	r.sync("web")
	r.applied("web")
	point := r.vm("web").LastPoint.ID // the one that a snapshot was taken for
	if err := r.verify("web"); err != nil {
		t.Errorf("latest is not an older, good point: %v", err)
	}
	spec, err := cli.ParsePoint(point)
	r.must(err)
	if _, err := Verify(r.ctx(), r.config().Target, cli.VerifyRequest{VM: "web", Point: spec}, nil); !errors.Is(err, &control.Error{Code: control.CodeDiffers}) {
		t.Errorf("verify of the rotten point: %v", err)
	}
	v := r.vm("web")
	if v.Resync.State != control.ResyncWaiting || !hasReason("resynchronization-required")(v) {
		t.Errorf("a replica that others changed is not marked: %+v", v)
	}
	res := r.resync("web", control.ResyncOptions{Deep: true, Now: true})
	if res.DifferingBytes != int64(len(damage))*4096 || res.DownloadedBytes > 2*4<<20 || res.State != control.ResyncIdle {
		t.Errorf("%+v", res)
	}
	repaired := r.sync("web")
	r.equals("web", repaired, map[string][]byte{"os.img": content})
	p, err := r.client.Points(r.ctx(), "web")
	r.must(err)
	for _, rp := range p.Points {
		if want := rp.ID == point; rp.Doubted != want {
			t.Errorf("point %s doubted: %v", rp.ID, rp.Doubted)
		}
	}
	r.applied("web")
	r.await("web", "health", func(v control.VM) bool { return v.State == string(lifecycle.Replicating) })
	if res := r.resync("web", control.ResyncOptions{Deep: true, Now: true}); res.Requests != 1 || res.DifferingBytes != 0 {
		t.Errorf("repaired: %+v", res)
	}
	r.replicaIs("web", "os.img", content)
}

// replicaIs compares the replica itself.
func (r *rig) replicaIs(vm, disk string, want []byte) {
	r.t.Helper()
	d, err := dir.Open(r.store, dir.Options{})
	r.must(err)
	got := make([]byte, len(want))
	r.must(d.ReadPages(context.Background(), catalog.ReplicaName(vm, disk), "", 0, got))
	if !bytes.Equal(got, want) {
		r.t.Errorf("the replica of %s is not what the disk is", disk)
	}
}

// sentBytes is what the points of a generation carry.
func (r *rig) sentBytes(vm string, generation uint64) (sent int64) {
	r.t.Helper()
	p, err := r.client.Points(r.ctx(), vm)
	r.must(err)
	for _, point := range p.Points {
		for _, d := range point.Disks {
			if point.Generation == generation {
				sent += d.ChangedBytes
			}
		}
	}
	return sent
}

// The state directory is lost on the same machine, its table alone is lost, its
// journal is rotten, and another machine adopts the VM: what the target has is not
// sent again, and the old points stay.
func TestLostStateSendsOnlyWhatChanged(t *testing.T) {
	for name, lose := range map[string]func(r *rig){
		"state directory": func(r *rig) { r.must(os.RemoveAll(r.state)); r.must(os.Mkdir(r.state, 0o700)) },
		"tables": func(r *rig) {
			files, err := filepath.Glob(filepath.Join(r.state, "tables", "*"))
			r.must(err)
			for _, f := range files {
				r.must(os.Remove(f))
			}
		},
		"journal":       func(r *rig) { r.must(os.RemoveAll(filepath.Join(r.state, "journal"))) },
		"rotten tables": func(r *rig) { rot(r, "tables/*") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content := r.content(16 * mib)
			clear(content[4*mib : 6*mib])
			r.put("web/os.img", content)
			r.start()
			first := r.sync("web")
			r.stop()
			before := slices.Clone(content)
			content[100] ^= 1
			content[9*mib] ^= 1
			r.put("web/os.img", content)
			lose(r)
			r.start()
			r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
			v := r.vm("web")
			if sent := r.sentBytes("web", v.Generation); v.Generation > 1 && sent != 2*4096 || v.Generation == 1 && sent > 2*4096+16*mib/100 {
				t.Errorf("generation %d carries %d bytes, 8192 changed", v.Generation, sent)
			}
			r.equals("web", first, map[string][]byte{"os.img": before})
			r.await("web", "replicating", func(v control.VM) bool { return v.State == string(lifecycle.Replicating) })
		})
	}
}

func rot(r *rig, glob string) {
	files, err := filepath.Glob(filepath.Join(r.state, glob))
	r.must(err)
	for _, f := range files {
		r.must(os.WriteFile(f, bytes.Repeat([]byte{0x5a}, 9000), 0o600))
	}
}

func TestAdoptOfAnotherMachinesVM(t *testing.T) {
	r := newRig(t)
	content := r.content(8 * mib)
	r.put("web/os.img", content)
	r.start()
	first := r.sync("web")
	r.stop()
	o := newRig(t) // another store, another state directory, the same target
	o.store = r.store
	mine := slices.Clone(content)
	mine[77] ^= 1
	o.put("web/os.img", mine)
	o.start()
	o.await("web", "refusal", causedBy("owned-by-another"))
	if _, err := o.client.Adopt(o.ctx(), "nobody", nil); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
	if _, err := o.client.Adopt(o.ctx(), "web", nil); err != nil {
		t.Fatal(err)
	}
	o.equals("web", o.sync("web"), map[string][]byte{"os.img": mine})
	o.equals("web", first, map[string][]byte{"os.img": content})
	if v := o.vm("web"); v.Generation != 2 || o.sentBytes("web", 2) != 4096 {
		t.Errorf("generation %d carries %d bytes", v.Generation, o.sentBytes("web", 2))
	}
	r.start()
	r.await("web", "fence", causedBy("fenced"))
}

// A fixed VHD that another tool put there is neither cleared nor sent again.
func TestAdoptOfASeed(t *testing.T) {
	r := newRig(t)
	content := r.content(8 * mib)
	r.put("web/os.img", content)
	seed := slices.Clone(content)
	seed[5*mib] ^= 1
	d, err := dir.Open(r.store, dir.Options{Create: true})
	r.must(err)
	whole, name, ctx := vhd(seed), catalog.ReplicaName("web", "os.img"), context.Background()
	r.must(d.CreatePages(ctx, name, int64(len(whole)), 0))
	for off := 0; off < len(whole); off += target.MaxPut {
		part := whole[off:min(off+target.MaxPut, len(whole))]
		r.must(d.PutPages(ctx, name, int64(off), part, checksum.Of(part), target.Unguarded))
	}
	r.start()
	r.await("web", "refusal", causedBy("replica-exists"))
	r.replicaIs("web", "os.img", seed)
	if _, err := r.client.Adopt(r.ctx(), "web", nil); err != nil {
		t.Fatal(err)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if sent := r.sentBytes("web", 1); sent != 4096 {
		t.Errorf("%d bytes sent, 4096 differ", sent)
	}
}

// The scrubs of many disks are due evenly over the period.
func TestScrubsSpread(t *testing.T) {
	now, every := time.Now(), 30*config.Day
	var due [10]int
	for i := range 1000 {
		last := firstScrub(string(rune('a'+i%26))+time.Duration(i).String(), every, now)
		left := every - now.Sub(last)
		if left < 0 || left > every {
			t.Fatalf("due in %v", left)
		}
		due[min(9, int(10*left/every))]++
	}
	for i, n := range due {
		if n < 50 || n > 200 {
			t.Errorf("%d of 1000 are due in tenth %d", n, i)
		}
	}
}

// A scrub that is due runs like one that an operator asked for.
func TestScheduledScrub(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(2*mib))
	r.start()
	r.sync("web")
	r.applied("web")
	r.scribble("web", "os.img", 7)
	m, err := r.app.find("web")
	r.must(err)
	r.must(m.resync.wishes.update(func(l *wishList) { l.Scrubbed["os.img"] = time.Now().Add(-40 * config.Day) }))
	conf := *r.app.config()
	conf.Resync.Scrub = 30 * config.Day
	r.app.conf.Store(&conf)
	m.resync.wake()
	v := r.await("web", "scrub", func(v control.VM) bool { return v.Resync.Deep && v.Resync.State == control.ResyncIdle })
	if v.Resync.Reason != "scheduled scrub" || v.Resync.DifferingBytes != 4096 {
		t.Errorf("%+v", v.Resync)
	}
	if last := m.resync.wishes.get().Scrubbed["os.img"]; time.Since(last) > time.Minute {
		t.Errorf("scrubbed at %v", last)
	}
}

// causedBy looks for a reason of that code, or with an error of that code behind it.
func causedBy(code string) func(control.VM) bool {
	return func(v control.VM) bool {
		return slices.ContainsFunc(v.Reasons, func(r control.Reason) bool { return r.Code == code || r.Cause == code })
	}
}
