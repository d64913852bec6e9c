package appliance

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// A scrape of a running appliance says what its status says, and counts what it did.
func TestMetricsOfAnAppliance(t *testing.T) {
	r := newRig(t)
	address := freeAddress(t)
	r.put("web/os.img", r.content(mib))
	conf := r.config()
	conf.MetricsListen = address
	r.must(r.tryStart(conf))
	r.sync("web")
	r.jobOf(control.JobProtect)
	resp, err := http.Get("http://" + address + "/metrics")
	r.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	r.must(err)
	for _, want := range []string{
		`vhdrelay_vm_state{state="Replicating",vm="web"} 1`, `vhdrelay_jobs{kind="protect",state="done"} 1`, `vhdrelay_target_requests_total{code="ok",method="PutPages"}`,
		`vhdrelay_stage_seconds_count{stage="ship"}`, `vhdrelay_point_seconds_count{vm="web"}`, `vhdrelay_vm_spool_quota_bytes{vm="web"}`, `vhdrelay_journal_commits_total`,
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
}

// An address that another process has is a warning, and nothing else stops.
func TestMetricsThatCannotListen(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	defer ln.Close()
	r.put("web/os.img", r.content(mib))
	conf := r.config()
	conf.MetricsListen = ln.Addr().String()
	r.must(r.tryStart(conf))
	r.sync("web")
	r.stop()
	if !r.logged("code=metrics-listen") {
		t.Error("nobody says that there are no metrics")
	}
}

func freeAddress(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
