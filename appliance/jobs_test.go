package appliance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// records is a store of documents in memory.
type records struct {
	docs  map[string][]byte
	saves int
	err   error
}

func (r *records) Keys(prefix string) ([]string, error) {
	var keys []string
	for k := range r.docs {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys, r.err
}

func (r *records) Load(key string, v any) (bool, error) {
	return true, json.Unmarshal(r.docs[key], v)
}

func (r *records) Save(key string, v any) error {
	r.saves++
	raw, err := json.Marshal(v)
	if r.err == nil {
		r.docs[key] = raw
	}
	return errors.Join(err, r.err)
}

func (r *records) Remove(key string) error {
	delete(r.docs, key)
	return r.err
}

// table is a job table over records, with a clock that a test moves.
type table struct {
	*jobs
	records *records
	clock   time.Time
	log     bytes.Buffer
}

func newTable(t *testing.T) *table {
	tab := &table{records: &records{docs: map[string][]byte{}}, clock: time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)}
	tab.reopen(t)
	return tab
}

func (tab *table) reopen(t *testing.T) {
	t.Helper()
	var err error
	tab.jobs, err = openJobs(tab.records, func() time.Time { return tab.clock }, slog.New(slog.NewTextHandler(&tab.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
}

func (tab *table) begin(kind control.JobKind, vm string) *job {
	return tab.jobs.begin(jobRecord{Job: control.Job{Kind: kind, VM: vm}}, []string{"one", "two", "three"}, nil)
}

func TestJobSurvivesRestart(t *testing.T) {
	tab := newTable(t)
	j := tab.begin(control.JobResync, "web")
	j.step("two")
	j.note(func(r *jobRecord) { r.After, r.Result = 7, "found" })
	tab.clock = tab.clock.Add(time.Minute)
	tab.reopen(t)
	again := tab.begin(control.JobResync, "web")
	if rec := again.durable(); rec.ID != "1" || rec.Step() != "two" || rec.After != 7 || len(tab.list("")) != 1 {
		t.Fatalf("%+v", rec)
	}
	if other := tab.begin(control.JobResync, "db"); other.durable().ID != "2" {
		t.Errorf("%+v", other.durable())
	}
	again.end(control.JobDone, "", nil)
	again.end(control.JobFailed, "", errors.New("too late"))
	again.step("three")
	tab.reopen(t)
	got, _, err := tab.get("1")
	if err != nil || got.State != control.JobDone || got.Result != "found" || got.Ended.Sub(got.Started) != time.Minute {
		t.Errorf("%+v, %v", got, err)
	}
	for _, s := range got.Steps {
		if s.State != control.JobDone || s.Ended.IsZero() {
			t.Errorf("step %+v of a job that is done", s)
		}
	}
	if list := tab.list(""); list[0].ID != "2" || list[1].ID != "1" {
		t.Errorf("what runs comes first: %+v", list)
	}
	if _, _, err := tab.get("9"); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
}

func TestJobStepsNeverGoBack(t *testing.T) {
	tab := newTable(t)
	j := tab.begin(control.JobProtect, "web")
	j.step("three")
	saves := tab.records.saves
	for _, name := range []string{"two", "three", "none"} {
		j.step(name)
	}
	if j.durable().Step() != "three" || tab.records.saves != saves {
		t.Errorf("%+v after %d saves more", j.durable().Steps, tab.records.saves-saves)
	}
}

// The record says why, what next, and what was done; the step that ran has failed.
func TestJobFails(t *testing.T) {
	tab := newTable(t)
	j := tab.begin(control.JobVerify, "web")
	j.follow(func() jobProgress { return jobProgress{done: 5, total: 10} })
	j.end(control.JobFailed, "", &shipper.Problem{Code: "fenced", Action: "adopt it", Err: errors.New("another writer")})
	got, _, _ := tab.get("1")
	if got.Code != "fenced" || got.Cause != "another writer" || got.Action != "adopt it" || got.DoneBytes != 5 || got.Steps[0].State != control.JobFailed || got.Steps[1].State != control.JobWaiting {
		t.Errorf("%+v", got)
	}
	if text := tab.log.String(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "code=fenced") {
		t.Errorf("log: %s", text)
	}
}

// A state disk that is broken forgets jobs and stops none; a record that cannot be read stops no start.
func TestJobsWithABrokenStore(t *testing.T) {
	tab := newTable(t)
	tab.records.err = errors.New("disk gone")
	j := tab.begin(control.JobResync, "web")
	j.step("two")
	j.end(control.JobDone, "", nil)
	if !strings.Contains(tab.log.String(), "job-not-saved") || len(tab.records.docs) != 0 {
		t.Errorf("log: %s", tab.log.String())
	}
	if _, err := openJobs(tab.records, time.Now, discard); err == nil {
		t.Error("the list cannot be read")
	}
	tab.records.err = nil
	tab.records.docs[docJob+"3"] = []byte("{")
	tab.reopen(t)
	if !strings.Contains(tab.log.String(), "job-unreadable") || len(tab.list("")) != 0 {
		t.Errorf("log: %s", tab.log.String())
	}
}

func TestOldJobsAreForgotten(t *testing.T) {
	tab := newTable(t)
	running := tab.begin(control.JobProtect, "web")
	for range keepJobs + 5 {
		tab.begin(control.JobResync, "web").end(control.JobDone, "", nil)
		tab.begin(control.JobPrune, "web").end(control.JobDone, "", nil)
	}
	if n := len(tab.list("web")); n != 1+keepJobs+keepPrunes || len(tab.records.docs) != n {
		t.Errorf("%d jobs, %d records", n, len(tab.records.docs))
	}
	tab.clock = tab.clock.Add(keepFor + time.Hour)
	last := tab.begin(control.JobResync, "db")
	last.end(control.JobDone, "", nil)
	tab.reopen(t)
	if list := tab.list(""); len(list) != 2 || list[0].ID != running.durable().ID || list[1].ID != last.durable().ID {
		t.Errorf("after a month: %+v", list)
	}
	if next := tab.begin(control.JobResync, "x"); next.number() != last.number()+1 {
		t.Errorf("id %s after %s: ids are never used again", next.durable().ID, last.durable().ID)
	}
}

func TestJobPace(t *testing.T) {
	tab := newTable(t)
	j := tab.begin(control.JobProtect, "web")
	var done int64
	j.follow(func() jobProgress { return jobProgress{done: done, total: 10 * mib, message: "copying"} })
	look := func(after time.Duration, at int64) control.Job {
		tab.clock, done = tab.clock.Add(after), at
		v, _, _ := tab.get("1")
		return v
	}
	if v := look(0, 0); v.RateBytesPerSecond != 0 || v.ETASeconds != nil || v.Message != "copying" {
		t.Errorf("at once: %+v", v)
	}
	if v := look(4*time.Second, 4*mib); v.RateBytesPerSecond != mib || *v.ETASeconds != 6 {
		t.Errorf("after 4 s: %d, %v", v.RateBytesPerSecond, v.ETASeconds)
	}
	if v := look(40*time.Second, 8*mib); v.RateBytesPerSecond != 4*mib/40 {
		t.Errorf("no look in the window: %d", v.RateBytesPerSecond)
	}
	if v := look(4*time.Second, 10*mib); v.RateBytesPerSecond != 6*mib/44 || v.ETASeconds != nil {
		t.Errorf("at the end: %d, %v", v.RateBytesPerSecond, v.ETASeconds)
	}
	j.wait("the target")
	if v := look(time.Second, mib); v.RateBytesPerSecond != 0 || v.Message != "the target" {
		t.Errorf("begun again: %+v", v)
	}
}

func TestProtectStep(t *testing.T) {
	served := shipper.DiskStatus{Err: image.ErrUnsupported}
	waiting, initial, complete := shipper.DiskStatus{Stage: shipper.StageWaiting}, shipper.DiskStatus{Stage: shipper.StageInitial}, shipper.DiskStatus{Stage: shipper.StageComplete}
	torn := shipper.DiskStatus{Stage: shipper.StageInitial, Err: image.ErrInvalid}
	point := catalog.PointID{Generation: 1, Epoch: 2}
	for _, c := range []struct {
		connected   bool
		disks       []shipper.DiskStatus
		point       catalog.PointID
		step        string
		unprotected bool
	}{
		{false, []shipper.DiskStatus{waiting}, catalog.PointID{}, stepPrerequisites, true},
		{true, []shipper.DiskStatus{waiting, served}, catalog.PointID{}, stepRelationship, true},
		{true, []shipper.DiskStatus{initial, waiting}, catalog.PointID{}, stepInitial, true},
		{true, []shipper.DiskStatus{complete, torn}, point, stepPrerequisites, true},
		{true, []shipper.DiskStatus{complete, waiting}, point, stepInitial, true},
		{true, []shipper.DiskStatus{complete, served}, catalog.PointID{}, stepFinalize, true},
		{true, []shipper.DiskStatus{complete, served}, point, stepFinalize, false},
		{true, []shipper.DiskStatus{served}, catalog.PointID{}, stepFinalize, false},
	} {
		st := shipper.Status{Connected: c.connected, Disks: c.disks, LastPoint: c.point}
		if got := protectStep(st); got != c.step || unprotected(st) != c.unprotected {
			t.Errorf("%+v: step %s, unprotected %v", c, got, unprotected(st))
		}
	}
}

// jobOf waits for the end of the newest job of a kind.
func (r *rig) jobOf(kind control.JobKind) control.Job {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx := r.ctx(); ; {
		all, err := r.client.Jobs(ctx, "")
		r.must(err)
		for _, j := range all.Jobs {
			if j.Kind == kind {
				j, err = r.client.WaitJob(ctx, j.ID, nil)
				r.must(err)
				return j
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("no job %s", kind)
		}
	}
}

func TestProtectionIsAJob(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.put("web/data.vhd", vhd(r.content(mib)))
	r.start()
	j := r.jobOf(control.JobProtect)
	if j.State != control.JobDone || j.DoneBytes != 2*mib || j.TotalBytes != 2*mib || len(j.Steps) != 4 || !strings.Contains(j.Result, "2 disks") {
		t.Fatalf("%+v", j)
	}
	if jobs := r.vm("web").Jobs; len(jobs) != 0 {
		t.Errorf("the status shows what is over: %+v", jobs)
	}
	r.stop()
	r.start()
	r.sync("web")
	if all, err := r.client.Jobs(r.ctx(), "web"); err != nil || len(all.Jobs) != 1 || all.Jobs[0].ID != j.ID {
		t.Errorf("after a restart: %+v, %v", all, err)
	}
	// At rest nothing is sent, so the new disk is seen before it is there: what is copied in a moment may be no job.
	_, err := r.client.Pause(r.ctx(), "web")
	r.must(err)
	r.write("web/more.img", r.content(mib))
	r.await("web", "a job for the new disk", func(v control.VM) bool { return len(v.Jobs) == 1 && v.Jobs[0].ID != j.ID })
	_, err = r.client.Resume(r.ctx(), "web")
	r.must(err)
	r.sync("web")
	if again := r.jobOf(control.JobProtect); again.ID == j.ID || again.State != control.JobDone || !strings.Contains(again.Result, "3 disks") {
		t.Errorf("another disk: %+v", again)
	}
}

// Killed between the copy and the first point, the job goes on where it was.
func TestProtectionGoesOnAfterACrash(t *testing.T) {
	r := newRig(t)
	r.failpoint = shipper.PointBeforeRecord
	cmd := r.child()
	r.must(os.WriteFile(r.path+armed, nil, 0o600))
	r.write("web/os.img", r.content(mib))
	if _, err := r.client.Sync(r.ctx(), "web", true, nil); !errors.Is(err, &control.Error{Code: control.CodeInterrupted}) {
		t.Errorf("sync through a crash: %v", err)
	}
	r.died(cmd)
	r.start()
	j := r.jobOf(control.JobProtect)
	if j.ID != "1" || j.State != control.JobDone || len(j.Steps) != 4 {
		t.Errorf("%+v", j)
	}
}

func TestResyncIsAJob(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(2*mib))
	r.start()
	r.sync("web")
	res, err := r.client.Resync(r.ctx(), "web", "", control.ResyncOptions{Now: true}, nil)
	r.must(err)
	j := r.jobOf(control.JobResync)
	if want := fmt.Sprintf("%d bytes compared, %d found different, %d sent with what was written meanwhile", res.ComparedBytes, res.DifferingBytes, r.vm("web").Resync.SentBytes); j.State != control.JobDone || j.Result != want || j.Reason == "" {
		t.Errorf("%+v, want %s", j, want)
	}
}

func TestVerifyAndExportInTheBackground(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", content)
	r.start()
	point := r.sync("web")
	j, err := r.client.StartJob(r.ctx(), control.JobRequest{Kind: control.JobVerify, VM: "web", Point: point})
	r.must(err)
	if j, err = r.client.WaitJob(r.ctx(), j.ID, nil); err != nil || j.State != control.JobDone || j.Result != "point "+point+": 1 of 1 disks match their CRC-64" {
		t.Errorf("%+v, %v", j, err)
	}
	out := t.TempDir() + "/out"
	export := control.JobRequest{Kind: control.JobExport, VM: "web", Output: out, Format: cli.FormatRaw}
	j, err = r.client.StartJob(r.ctx(), export)
	r.must(err)
	if j, err = r.client.WaitJob(r.ctx(), j.ID, nil); err != nil || j.State != control.JobDone {
		t.Errorf("%+v, %v", j, err)
	}
	if j, err = r.client.StartJob(r.ctx(), export); err != nil {
		t.Fatal(err)
	}
	if j, err = r.client.WaitJob(r.ctx(), j.ID, nil); err != nil || j.State != control.JobFailed || j.Code != "output-exists" || j.Action == "" {
		t.Errorf("over an export: %+v, %v", j, err)
	}
	for _, bad := range []control.JobRequest{{Kind: control.JobPrune}, {Kind: control.JobExport, Output: "relative"}, {Kind: control.JobVerify, Point: "yesterday"}} {
		if _, err := r.client.StartJob(r.ctx(), bad); !errors.Is(err, &control.Error{Code: control.CodeUsage}) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// What an appliance did not come to finish, the next one does.
func TestBackgroundJobGoesOnAfterARestart(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.start()
	r.sync("web")
	req := control.JobRequest{Kind: control.JobVerify, VM: "web"}
	j := r.app.jobs.begin(jobRecord{Job: control.Job{Kind: req.Kind, VM: req.VM}, Request: &req}, []string{"verify"}, nil)
	if _, err := r.client.StartJob(r.ctx(), req); !errors.Is(err, &control.Error{Code: "job-running"}) {
		t.Errorf("a second one: %v", err)
	}
	r.stop()
	r.start()
	if got, err := r.client.WaitJob(r.ctx(), j.durable().ID, nil); err != nil || got.State != control.JobDone {
		t.Errorf("%+v, %v", got, err)
	}
}
