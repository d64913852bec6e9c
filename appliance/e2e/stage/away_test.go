package stage

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

func TestScheduleIsJudged(t *testing.T) {
	began := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	at := func(s int, wait time.Duration) failure {
		return failure{began.Add(time.Duration(s) * time.Second), wait}
	}
	good := []failure{at(33, time.Minute), at(122, 2*time.Minute), at(271, 4*time.Minute)}
	for name, c := range map[string]struct {
		failures []failure
		bad      bool
	}{
		"as written":  {good, false},
		"too few":     {good[:2], true},
		"too soon":    {[]failure{at(33, time.Minute), at(60, 2*time.Minute), at(210, 4*time.Minute)}, true},
		"wrong waits": {[]failure{at(33, time.Minute), at(122, time.Minute), at(211, time.Minute), at(300, time.Minute)}, true},
		"too many":    {append(good[:3:3], at(280, 0), at(290, 0)), true},
	} {
		r := NewReport(io.Discard)
		judgeSchedule(r, c.failures, began, began.Add(6*time.Minute))
		if got := len(r.Failures()) > 0; got != c.bad {
			t.Errorf("%s: %q", name, r.Failures())
		}
	}
}

func TestHealthOfAnOutageIsJudged(t *testing.T) {
	warned := rig.VM{Health: "Warning", State: "Replicating", LastPoint: &rig.Point{Epoch: 7}, Reasons: []rig.Reason{{Code: "retrying"}}}
	for name, c := range map[string]struct {
		seen []rig.VM
		bad  bool
	}{
		"as it should":  {[]rig.VM{{Health: "Normal", State: "Replicating"}, warned, warned}, false},
		"unnoticed":     {[]rig.VM{{Health: "Normal", State: "Replicating"}}, true},
		"too much":      {[]rig.VM{warned, {Health: "Critical", State: "Replicating"}}, true},
		"another state": {[]rig.VM{warned, {Health: "Warning", State: "Error"}}, true},
	} {
		r, w := NewReport(io.Discard), &outageWatch{}
		for _, vm := range c.seen {
			w.look(vm)
		}
		w.judge(r)
		if got := len(r.Failures()) > 0; got != c.bad {
			t.Errorf("%s: %q", name, r.Failures())
		}
	}
}

func TestShipFailures(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	text := `time=2026-05-04T12:00:01.5Z level=WARN msg="stage failed" vm=a stage=ship class=recoverable code=x cause="a b" action=none attempt=1 retry_in=1m0s
time=2026-05-04T12:00:02.5Z level=WARN msg="stage failed" vm=a stage=apply class=recoverable code=x cause=y action=none attempt=1 retry_in=1m0s
time=2026-05-04T12:00:03.5Z level=INFO msg="stage recovered" vm=a stage=ship
time=2026-05-04T12:01:31.5Z level=WARN msg="stage failed" vm=a stage=ship class=recoverable code=x cause=y action=none attempt=2 retry_in=2m0s
`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := shipFailures(log, time.Date(2026, 5, 4, 12, 0, 2, 0, time.UTC))
	if err != nil || len(all) != 1 || all[0].wait != 2*time.Minute || all[0].at.Minute() != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := shipFailures(log, time.Time{}); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
}
