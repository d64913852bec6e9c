package health

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// well are the facts of a VM that has nothing to complain of.
func well() Facts {
	return Facts{VM: "web", Now: noon, Interval: 30 * time.Second, Disks: []Disk{{Name: "os.img", Complete: true}},
		LastPoint: noon.Add(-time.Minute), Pending: 1, Quota: 100}
}

func trouble(class retry.Class, code string) Trouble {
	return Trouble{Stage: "ship", Class: class, Code: code, Cause: "it says why", Action: "do this", Since: noon.Add(-time.Minute)}
}

// cycle is one that was sealed so long ago and took so long, 0 for no point yet.
func cycle(ago, took time.Duration) Cycle {
	c := Cycle{SealedAt: noon.Add(-ago)}
	if took > 0 {
		c.DurableAt = c.SealedAt.Add(took)
	}
	return c
}

// cycles are n in a row that took so long, one an interval of 30 s.
func cycles(n int, took time.Duration) []Cycle {
	var all []Cycle
	for i := n; i > 0; i-- {
		all = append(all, cycle(time.Duration(i)*30*time.Second, took))
	}
	return all
}

var situations = map[string]struct {
	change func(*Facts)
	want   []string
}{
	"well":               {func(*Facts) {}, nil},
	"idle for long":      {func(f *Facts) { f.LastPoint, f.Pending = noon.Add(-48*time.Hour), 0 }, nil},
	"no point yet":       {func(f *Facts) { f.LastPoint = time.Time{} }, nil},
	"no point for long":  {func(f *Facts) { f.LastPoint = noon.Add(-61 * time.Minute) }, []string{RPOExceeded}},
	"a long interval":    {func(f *Facts) { f.LastPoint, f.Interval = noon.Add(-61*time.Minute), 20*time.Minute }, nil},
	"half the spool":     {func(f *Facts) { f.Spooled = 51 }, []string{SpoolOverHalf}},
	"not half the spool": {func(f *Facts) { f.Spooled = 50 }, nil},
	"a full state disk":  {func(f *Facts) { f.Scarce = "/var/lib/vhdrelay" }, []string{StateDiskFull}},
	"no disks":           {func(f *Facts) { f.Disks = nil }, []string{NoDisks}},
	"initial":            {func(f *Facts) { f.Disks[0].Complete = false }, []string{InitialUnfinished}},
	"half an image":      {func(f *Facts) { f.Disks[0] = Disk{Name: "x", NotYet: errors.New("no footer")} }, []string{ImageIncomplete, InitialUnfinished}},
	"a broken chain": {func(f *Facts) {
		f.Disks[0] = Disk{Name: "x", Chain: errors.New("no parent")}
		f.Troubles = []Trouble{trouble(retry.NonRecoverable, ChainBroken)}
	}, []string{ChainBroken, InitialUnfinished}},
	"a broken image": {func(f *Facts) { f.Disks[0] = Disk{Name: "x", Err: errors.New("torn")} }, []string{BadImage, InitialUnfinished}},
	"the same, met by a stage": {func(f *Facts) {
		f.Disks[0] = Disk{Name: "x", Err: errors.New("torn")}
		f.Troubles = []Trouble{trouble(retry.NonRecoverable, BadImage)}
	}, []string{BadImage, InitialUnfinished}},
	"a foreign image":     {func(f *Facts) { f.Disks = append(f.Disks, Disk{Name: "x.vhdx", Foreign: true}) }, []string{UnprotectedFormat}},
	"a foreign file":      {func(f *Facts) { f.Foreign = []string{"x.qcow2"} }, []string{UnprotectedFormat}},
	"journal":             {func(f *Facts) { f.Journal = errors.New("full") }, []string{JournalFailing}},
	"a failed comparison": {func(f *Facts) { f.Comparison = errors.New("unreadable") }, []string{ComparisonFailed}},
	"leaving":             {func(f *Facts) { f.Leaving = errors.New("away") }, []string{Leaving}},
	"overflow":            {func(f *Facts) { f.CatchUp = "quota" }, []string{ResyncRequired}},
	"marked":              {func(f *Facts) { f.Marked = &Mark{"os.img", "replaced"} }, []string{ResyncRequired}},
	"comparison paused":   {func(f *Facts) { f.Marked, f.ComparisonPaused = &Mark{"os.img", "replaced"}, true }, []string{ResyncRequired}},
	"compared":            {func(f *Facts) { f.Marked, f.Comparing = &Mark{"os.img", "replaced"}, true }, []string{Resynchronizing}},
	"paused":              {func(f *Facts) { f.Paused = true }, []string{VMPaused}},
	"untracked":           {func(f *Facts) { f.Store = []control.Reason{{Code: ImageUntracked, Severity: control.SeverityCritical}} }, []string{ImageUntracked}},
	"fenced":              {func(f *Facts) { f.Troubles = []Trouble{trouble(retry.NonRecoverable, Fenced)} }, []string{Fenced}},
	"a bug":               {func(f *Facts) { f.Troubles = []Trouble{trouble(retry.Bug, "bad-range")} }, []string{Defect}},
	"the worst first": {func(f *Facts) {
		f.Troubles = []Trouble{trouble(retry.Recoverable, "timeout"), trouble(retry.NonRecoverable, "not-authorized")}
	}, []string{CannotSend, Retrying}},
	"one cause in two stages": {func(f *Facts) {
		f.Troubles = []Trouble{trouble(retry.Recoverable, "timeout"), trouble(retry.Recoverable, "timeout")}
	}, []string{Retrying}},

	"every cycle in time":        {func(f *Facts) { f.Cycles = cycles(130, 40*time.Second) }, nil},
	"24 of 120 missed":           {func(f *Facts) { f.Cycles = cycles(24, 61*time.Second) }, nil},
	"25 of 120 missed":           {func(f *Facts) { f.Cycles = cycles(25, 61*time.Second) }, []string{CyclesMissed}},
	"exactly in time":            {func(f *Facts) { f.Cycles = cycles(120, time.Minute) }, nil},
	"missed, but long ago":       {func(f *Facts) { f.Cycles = []Cycle{}; f.add(40, 2*time.Hour) }, nil},
	"the newest may yet make it": {func(f *Facts) { f.Cycles = cycles(2, 0) }, nil},
	"a burst is one cycle":       {func(f *Facts) { f.burst(300) }, nil},
	"open ones are missed":       {func(f *Facts) { f.Cycles = cycles(60, 0); f.open() }, []string{CyclesMissed}},
	"the quota keeps them back":  {func(f *Facts) { f.SealsRest = noon.Add(-13 * time.Minute) }, []string{CyclesMissed}},
	"a short while":              {func(f *Facts) { f.SealsRest = noon.Add(-12 * time.Minute) }, nil},
	"slow":                       {func(f *Facts) { f.Cycles = cycles(20, 301*time.Second) }, []string{CycleLatency}},
	"not slow":                   {func(f *Facts) { f.Cycles = cycles(20, 300*time.Second) }, nil},
	"stuck counts with its age":  {func(f *Facts) { f.Cycles = []Cycle{cycle(40*time.Minute, 0), cycle(20*time.Minute, time.Second)} }, []string{CycleLatency}},
}

// add appends cycles that were sealed around a time ago and missed.
func (f *Facts) add(n int, ago time.Duration) {
	for i := range n {
		f.Cycles = append(f.Cycles, cycle(ago+time.Duration(i)*30*time.Second, 2*time.Minute))
	}
}

// burst makes cycles that follow each other at once and never become points.
func (f *Facts) burst(n int) {
	for i := range n {
		c := cycle(10*time.Minute+time.Duration(i)*10*time.Millisecond, 0)
		c.Open = true
		f.Cycles = append(f.Cycles, c)
	}
}

func (f *Facts) open() {
	for i := range f.Cycles {
		f.Cycles[i].Open = true
	}
}

func TestJudge(t *testing.T) {
	for name, x := range situations {
		f := well()
		x.change(&f)
		var got []string
		for _, r := range Judge(f) {
			got = append(got, r.Code)
			if m, known := MeaningOf(r.Code); !known || m.Severity != r.Severity {
				t.Errorf("%s: %+v is not as the table has it", name, r)
			}
			if r.Code != ImageUntracked && (r.Message == "" || r.Action == "") {
				t.Errorf("%s: %+v says too little", name, r)
			}
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
}

// TestI12_EveryCodeIsJudged: no line of the table without a situation that leads to it.
func TestI12_EveryCodeIsJudged(t *testing.T) {
	seen := map[string]bool{}
	for _, code := range []string{ImageRefused, ForeignWriter, StoreUnmounted, SourceShadowed, NestedMount, VMMoved, ConfigInvalid} {
		seen[code] = true // of the store, as image-untracked
	}
	for _, x := range situations {
		for _, code := range x.want {
			seen[code] = true
		}
	}
	for _, m := range Codes {
		if !seen[m.Code] || m.Means == "" || m.Do == "" {
			t.Errorf("%s: led to %v, %+v", m.Code, seen[m.Code], m)
		}
	}
}

func TestTroubleSaysWhatToDo(t *testing.T) {
	f := well()
	waiting := trouble(retry.Recoverable, "timeout")
	waiting.NextTry = noon.Add(time.Minute)
	r := f.trouble(waiting)
	if want := "ship: it says why (recoverable, timeout, next try 2026-05-04T12:01:00Z)"; r.Message != want || r.Cause != "timeout" || !r.Since.Equal(waiting.Since) {
		t.Errorf("%+v, want %q", r, want)
	}
	for given, want := range map[string]string{
		"check the key, then resume the VM":                     "check the key; then: vhdrelay resume web",
		"mend the cause, then resume the VM":                    "mend the cause; then: vhdrelay resume web",
		"repair or remove the image, then: vhdrelay resume web": "repair or remove the image, then: vhdrelay resume web",
		"use what is there: vhdrelay adopt web":                 "use what is there: vhdrelay adopt web",
		"vhdrelay unprotect web, then vhdrelay protect web":     "vhdrelay unprotect web, then vhdrelay protect web",
		"give the identity the role on the container":           "give the identity the role on the container; then: vhdrelay resume web",
	} {
		tr := trouble(retry.NonRecoverable, "not-authorized")
		tr.Action = given
		if r := f.trouble(tr); r.Action != want || r.Severity != control.SeverityCritical {
			t.Errorf("%q becomes %q, want %q", given, r.Action, want)
		}
	}
}

func TestOf(t *testing.T) {
	w, c := control.Reason{Severity: control.SeverityWarning}, control.Reason{Severity: control.SeverityCritical}
	for _, x := range []struct {
		reasons []control.Reason
		want    control.Health
	}{
		{nil, control.HealthNormal}, {[]control.Reason{w}, control.HealthWarning}, {[]control.Reason{c}, control.HealthCritical},
		{[]control.Reason{w, c}, control.HealthCritical}, {[]control.Reason{c, w}, control.HealthCritical},
	} {
		if got := Of(x.reasons); got != x.want {
			t.Errorf("%v: %s, want %s", x.reasons, got, x.want)
		}
	}
}

func TestUnknownCodeIsCritical(t *testing.T) {
	if r := reason("no-such-code", "", "x"); r.Severity != control.SeverityCritical {
		t.Errorf("%+v", r)
	}
}

func TestPredict(t *testing.T) {
	from := noon
	samples := func(in, out, changed int64) []Sample {
		return []Sample{
			{At: from, Spooled: 100e6, Changed: map[string]int64{"os.img": 1e9}},
			{At: from.Add(time.Minute), Spooled: 100e6 + 60*(in-out), In: 60 * in, Out: 60 * out, Changed: map[string]int64{"os.img": 1e9 + 60*changed}},
		}
	}
	limits := Limits{Spool: 100e6 + 60*5e6 + 43*60*5e6, Disk: map[string]int64{"os.img": 10e9}}
	f := Predict(samples(12e6, 7e6, 0), limits)
	if f == nil || f.What != "spool" || f.In.Round(time.Second) != 43*time.Minute || f.Message != "the spool is full in 43 min: 12 MB/s change, 7.0 MB/s leave" {
		t.Errorf("%+v", f)
	}
	if f = Predict(samples(12e6, 7e6, 10e6), limits); f == nil || f.What != "os.img" || !strings.Contains(f.Message, "disk os.img reaches its mark in 14 min") {
		t.Errorf("the disk comes first: %+v", f)
	}
	for name, s := range map[string][]Sample{
		"it empties":       samples(7e6, 12e6, -1),
		"it stays":         samples(7e6, 7e6, 0),
		"not for a day":    samples(100_001, 100_000, 0),
		"one sample":       samples(12e6, 7e6, 0)[:1],
		"none":             nil,
		"samples too near": {{At: from}, {At: from.Add(shortRate - 1), Spooled: 1e9, In: 1e9}},
	} {
		if f := Predict(s, limits); f != nil {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestTextsForPeople(t *testing.T) {
	for rate, want := range map[float64]string{12e6: "12 MB/s", 9.94e6: "9.9 MB/s", 1e5: "0.1 MB/s", 4e3: "4 kB/s", 0: "0 kB/s"} {
		if got := rateText(rate); got != want {
			t.Errorf("%v: %q", rate, got)
		}
	}
	for d, want := range map[time.Duration]string{90 * time.Second: "90 s", 43 * time.Minute: "43 min", 5 * time.Hour: "5 h"} {
		if got := span(d); got != want {
			t.Errorf("%v: %q", d, got)
		}
	}
}
