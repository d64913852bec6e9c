package appliance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// stages gathers what a waiting command is told.
type stages struct{ all []string }

func (s *stages) add(p control.Progress) {
	if !slices.Contains(s.all, p.Stage) {
		s.all = append(s.all, p.Stage)
	}
}

func (s *stages) has(text string) bool {
	return slices.ContainsFunc(s.all, func(stage string) bool { return strings.Contains(stage, text) })
}

// slowly makes the copy of a disk begin some seconds later.
func slowly(disk string) func(op fake.Op) fake.Fault {
	var began time.Time
	return func(op fake.Op) fake.Fault {
		if path.Base(op.Name) != "replica.vhd" || !strings.Contains(op.Name, disk) || op.Method != "CreatePages" {
			return fake.Fault{}
		}
		if began.IsZero() {
			began = time.Now()
		}
		if time.Since(began) < 7*time.Second {
			return fake.Fault{Kind: fake.Refuse, Err: syscall.ECONNREFUSED}
		}
		return fake.Fault{}
	}
}

// A sync waits for a disk that is being copied, whatever other stages are in trouble: a
// point without it does not hold what the caller wrote.
func TestSyncWaitsForANewDiskWhileApplyFails(t *testing.T) {
	inBubble(t, "replication: {apply_interval: 5s}\n", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		slow := slowly("new.img")
		b.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "Snapshot" && strings.Contains(op.Name, "os.img") {
				return fake.Fault{Kind: fake.Refuse, Err: syscall.ECONNREFUSED}
			}
			return slow(op)
		})
		b.write("web/os.img", 0, 4096)
		b.within(2*time.Minute, "web", "trouble of the apply", hasReason(health.Retrying))
		b.put("web/new.img", make([]byte, mib))
		b.attach("web/new.img")
		b.write("web/new.img", 0, 4096)
		var told stages
		res, err := b.a.Sync(b.t.Context(), "web", true, told.add)
		b.must(err)
		points, err := b.a.Points(b.t.Context(), "web")
		b.must(err)
		newest := points.Points[len(points.Points)-1]
		if newest.ID != res.Point || len(newest.Disks) != 2 {
			t.Errorf("sync made %s, it holds %+v; told %q", res.Point, newest.Disks, told.all)
		}
		b.up()
		b.within(2*time.Hour, "web", "Normal", normal)
	})
}

// A sync that has to wait says what for.
func TestI12_SyncSaysWhyItWaits(t *testing.T) {
	inBubble(t, "", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		full := func(bytes int64) {
			b.a.share.Lock()
			defer b.a.share.Unlock()
			b.a.share.bytes, b.a.share.at = bytes, time.Now().Add(24*time.Hour)
		}
		full(-1) // the state disk is full: 0 would be measured anew
		b.write("web/os.img", 0, 4096)
		var told stages
		done := make(chan error, 1)
		go func() {
			_, err := b.a.Sync(b.t.Context(), "web", true, told.add)
			done <- err
		}()
		b.idle(time.Minute)
		full(1 << 30)
		b.must(<-done)
		if !told.has("waiting for room in the spool") {
			t.Errorf("told only %q", told.all)
		}
		told = stages{}
		b.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Name == probeName {
				return fake.Fault{}
			}
			return fake.Fault{Kind: fake.Throttle}
		})
		b.write("web/os.img", 0, 4096)
		go func() {
			_, err := b.a.Sync(b.t.Context(), "web", true, told.add)
			done <- err
		}()
		b.idle(2 * time.Minute)
		b.up()
		b.must(<-done)
		if !told.has("ship is tried again at ") {
			t.Errorf("told only %q", told.all)
		}
	})
}

// A disk that is copied between two looks has its job too.
func TestADiskCopiedInAMomentHasAJob(t *testing.T) {
	inBubble(t, "", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		of := func() (all []control.Job) {
			for _, j := range b.a.jobs.list("web") {
				if j.Kind == control.JobProtect {
					all = append(all, j)
				}
			}
			return all
		}
		b.idle(time.Minute)
		if jobs := of(); len(jobs) != 1 || jobs[0].State != control.JobDone {
			t.Fatalf("%+v", jobs)
		}
		b.put("web/new.img", make([]byte, mib))
		b.attach("web/new.img")
		b.idle(5 * time.Minute)
		jobs := of()
		if len(jobs) != 2 || jobs[0].State != control.JobDone || !strings.Contains(jobs[0].Result, "2 disks") {
			t.Errorf("%+v", jobs)
		}
		b.idle(time.Hour)
		if again := of(); len(again) != 2 {
			t.Errorf("more jobs came: %+v", again)
		}
	})
}

// A VM that replicates, and one whose target is away, say nothing at every cycle.
func TestNothingIsLoggedAtEveryCycle(t *testing.T) {
	inBubble(t, "replication: {interval: 10s, apply_interval: 30s, recovery_points: {dense: 10m, hourly: 1h, daily: 24h}}\n", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		b.idle(2 * time.Minute) // its job ends
		b.log.forget()
		b.pass("web/os.img", 15*time.Minute)
		if lines := b.log.lines(); len(lines) > 0 {
			t.Errorf("ninety cycles said %d things: %q", len(lines), lines[:min(len(lines), 20)])
		}
		b.down(syscall.ECONNREFUSED)
		b.pass("web/os.img", 20*time.Minute)
		// Two or three stages fail as the schedule says: after 1, 2, 4 and 8 minutes.
		if lines := b.log.lines(); len(lines) > 3*5 {
			t.Errorf("an outage of twenty minutes said %d things: %q", len(lines), lines)
		}
		b.up()
		retry.Sleep(b.t.Context(), time.Minute)
		b.log.forget()
		b.pass("web/os.img", 10*time.Minute)
		if lines := b.log.lines(); len(lines) > 2 {
			t.Errorf("after an outage: %q", lines)
		}
	})
}

// A resync says how much it compared, found different and sent.
func TestResyncSaysWhatWasSent(t *testing.T) {
	inBubble(t, "replication: {compression: \"off\"}\n", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		f, err := os.OpenFile(filepath.Join(b.source, "web/os.img"), os.O_WRONLY, 0)
		b.must(err)
		_, err = f.WriteAt(bytes.Repeat([]byte{7}, 2*4096), 5*mib) // behind the appliance
		b.must(errors.Join(err, f.Close()))
		_, err = b.a.Resync(b.t.Context(), "web", "", control.ResyncOptions{Now: true}, nil)
		b.must(err)
		v := b.within(10*time.Minute, "web", "Normal", func(v control.VM) bool { return normal(v) && len(v.Jobs) == 0 })
		r := v.Resync
		if r.ComparedBytes != 64*mib || r.DifferingBytes != 8192 || r.SentBytes < 8192 || r.SentBytes > 16384 {
			t.Errorf("%+v", r)
		}
		want := fmt.Sprintf("%d bytes compared, 8192 found different, %d sent with what was written meanwhile", r.ComparedBytes, r.SentBytes)
		for _, j := range b.a.jobs.list("web") {
			if j.Kind == control.JobResync && (j.Result != want || j.State != control.JobDone || j.Reason == "") {
				t.Errorf("%+v, want %q", j, want)
			}
		}
		b.write("web/os.img", 0, mib)
		b.idle(time.Minute)
		if now := b.vm("web").Resync; now.SentBytes != r.SentBytes {
			t.Errorf("what was sent later counts as well: %+v", now)
		}
	})
}

// What failed because the journal took nothing goes on when it does, and waits for no schedule.
func TestStagesGoOnWithTheJournal(t *testing.T) {
	inBubble(t, "", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		before := b.a.lookAtJournal(0)
		b.failing.Store(true)
		b.pass("web/os.img", 5*time.Minute)
		b.within(time.Minute, "web", "trouble", hasReason(health.Retrying))
		if b.a.lookAtJournal(before) != before {
			t.Error("the journal works")
		}
		b.failing.Store(false)
		b.within(time.Minute, "web", "the journal", func(v control.VM) bool { return !hasReason(health.JournalFailing)(v) })
		if !hasReason(health.Retrying)(b.vm("web")) {
			t.Fatal("there is nothing to go on with")
		}
		if b.a.lookAtJournal(before) == before {
			t.Error("that the journal has failed is not seen")
		}
		b.within(5*time.Second, "web", "no trouble", func(v control.VM) bool { return !hasReason(health.Retrying)(v) })
	})
}
