package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

func someFacts() Facts {
	rpo := 12.5
	return Facts{Limit: 1 << 20, Quotas: map[string]int64{"web": 1 << 30},
		Jobs:    []control.Job{{Kind: control.JobProtect, State: control.JobRunning}, {Kind: control.JobResync, State: control.JobFailed}, {Kind: control.JobResync, State: control.JobFailed}},
		Journal: Journal{Commits: 7, ActiveRegions: 3, Failing: true},
		Status: control.Status{Pacer: &control.Pacer{Limited: true, Throttled: 5}, VMs: []control.VM{
			{Name: "web", State: "Replicating", Health: control.HealthWarning, IntervalSeconds: 30, DurableRPOSeconds: &rpo, LastPoint: &control.Point{Time: time.UnixMilli(1500)},
				PendingBytes: 4096, SpooledBytes: 8192, Reasons: []control.Reason{{Code: "paused", Severity: control.SeverityWarning}, {Code: "paused", Severity: control.SeverityWarning}},
				Disks: []control.Disk{{Name: "os.vhd", VirtualSize: 1 << 30, ActiveRegions: 2}}},
			{Name: "db", State: "Error", Health: control.HealthCritical},
			{Name: "new", State: "Disabled", Health: "Unheard"}}}}
}

func newSet() *Set { return New("1.2.3", someFacts) }

// scrape is what Prometheus reads.
func scrape(t *testing.T, s *Set) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// used has something in every metric.
func used() *Set {
	s := newSet()
	s.Stage("web", "ship", time.Second, errors.New("away"))
	s.Retry(&target.Error{Code: retry.CodeThrottled, Err: target.ErrThrottled})
	s.Point("web", 3*time.Second)
	s.Drain("web", 20*time.Microsecond)
	s.Guest("write", 50*time.Microsecond)
	tgt := s.Target(fake.New(fake.Options{}))
	ctx := context.Background()
	_ = tgt.CreatePages(ctx, "x", 8192, 0)
	page := make([]byte, 4096)
	_ = tgt.PutPages(ctx, "x", 0, page, checksum.Of(page), target.Unguarded)
	_ = tgt.ReadPages(ctx, "x", "", 0, page[:512])
	_, _ = tgt.Get(ctx, "none")
	return s
}

// missing is the code of what is not there.
func missing() string {
	_, err := fake.New(fake.Options{}).Get(context.Background(), "none")
	_, code, _, _ := retry.Describe(err)
	return code
}

func TestScrape(t *testing.T) {
	text := scrape(t, used())
	for _, line := range []string{
		`vhdrelay_build_info{version="1.2.3"} 1`, `vhdrelay_vm_health{vm="web"} 1`, `vhdrelay_vm_health{vm="db"} 2`, `vhdrelay_vm_health{vm="new"} 2`,
		`vhdrelay_vm_state{state="Error",vm="db"} 1`, `vhdrelay_vm_reason{code="paused",severity="warning",vm="web"} 1`,
		`vhdrelay_vm_durable_rpo_seconds{vm="web"} 12.5`, `vhdrelay_vm_last_point_timestamp_seconds{vm="web"} 1.5`, `vhdrelay_vm_spool_quota_bytes{vm="web"} 1.073741824e+09`,
		`vhdrelay_jobs{kind="resync",state="failed"} 2`, `vhdrelay_bandwidth_limit_bytes_per_second 1.048576e+06`, `vhdrelay_pacer_limited 1`, `vhdrelay_target_throttled_total 5`,
		`vhdrelay_journal_commits_total 7`, `vhdrelay_journal_failing 1`, `vhdrelay_disk_active_regions{disk="os.vhd",vm="web"} 2`,
		`vhdrelay_target_requests_total{code="ok",method="PutPages"} 1`, `vhdrelay_target_requests_total{code="` + missing() + `",method="Get"} 1`,
		`vhdrelay_target_sent_bytes_total 4096`, `vhdrelay_target_received_bytes_total 512`, `vhdrelay_target_put_bytes_count 1`,
		`vhdrelay_stage_seconds_count{stage="ship"} 1`, `vhdrelay_stage_failures_total{code="unclassified",stage="ship",vm="web"} 1`,
		`vhdrelay_retries_total{code="throttled"} 1`, `vhdrelay_point_seconds_sum{vm="web"} 3`, `vhdrelay_guest_request_seconds_count{verb="write"} 1`,
		`vhdrelay_seal_drain_seconds_count{vm="web"} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(text, `vhdrelay_vm_durable_rpo_seconds{vm="db"}`) {
		t.Error("a VM without a point has no RPO")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// Names as Prometheus wants them: base units, _total for counters, help for all.
func TestNamesFollowTheConventions(t *testing.T) {
	problems, err := testutil.GatherAndLint(used().registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

var metricName = regexp.MustCompile(`vhdrelay_[a-z_]+`)

// exported are the names a scrape shows.
func exported(t *testing.T) map[string]bool {
	names := map[string]bool{}
	for _, name := range metricName.FindAllString(scrape(t, used()), -1) {
		names[name] = true
	}
	return names
}

// expressions of the alerts and of the dashboard.
func expressions(t *testing.T) []string {
	t.Helper()
	rules, err := os.ReadFile("alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^ +expr: (.*)$`).FindAllStringSubmatch(string(rules), -1) {
		all = append(all, m[1])
	}
	raw, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	return all
}

func TestAlertsAndDashboardUseWhatIsExported(t *testing.T) {
	names, all := exported(t), expressions(t)
	if len(all) < 20 {
		t.Fatalf("only %d expressions", len(all))
	}
	for _, e := range all {
		for _, name := range metricName.FindAllString(e, -1) {
			if !names[name] {
				t.Errorf("%s: nothing exports %s", e, name)
			}
		}
	}
}

// promtool reads the rules as Prometheus does, and the dashboard's expressions as rules.
func TestPromtoolTakesThem(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		promtool = "../../.tools/promtool"
		if _, err := os.Stat(promtool); err != nil {
			t.Skip("no promtool: make tools brings it")
		}
	}
	rules := "groups:\n- name: dashboard\n  rules:\n"
	for _, e := range expressions(t) {
		quoted, _ := json.Marshal(e)
		rules += "  - {record: x, expr: " + string(quoted) + "}\n"
	}
	file := t.TempDir() + "/dashboard.yaml"
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", "--lint=none", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := exec.Command(promtool, "check", "rules", "alerts.yaml").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(scrape(t, used()))
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// A measured target is the target.
func TestMeasuredTargetChangesNothing(t *testing.T) {
	inner := fake.New(fake.Options{})
	tgt := newSet().Target(inner)
	ctx := t.Context()
	if tgt.String() != inner.String() {
		t.Error(tgt.String())
	}
	etag, err := tgt.Create(ctx, "a", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tgt.Replace(ctx, "a", []byte("2"), etag); err != nil {
		t.Error(err)
	}
	if _, err := tgt.Create(ctx, "a", nil); !errors.Is(err, target.ErrExists) {
		t.Errorf("%v", err)
	}
	if o, err := tgt.Get(ctx, "a"); err != nil || string(o.Data) != "2" {
		t.Errorf("%s, %v", o.Data, err)
	}
	n := 0
	for item, err := range tgt.List(ctx, "") {
		if err != nil || item.Name != "a" {
			t.Errorf("%+v, %v", item, err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d listed", n)
	}
}

func TestServe(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	s := newSet()
	if err := s.Serve(t.Context(), address); err == nil {
		t.Error("an address in use is no error")
	}
	ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, address) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		resp, err := http.Get("http://" + address + "/metrics")
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !strings.Contains(string(body), "vhdrelay_build_info") {
				t.Errorf("%s", body)
			}
			break
		}
		<-tick.C
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
