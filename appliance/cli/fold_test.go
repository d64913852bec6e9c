package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func fits(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

func TestFold(t *testing.T) {
	long := strings.Repeat("word ", 30)
	for _, text := range []string{"short\n", "  " + long + "\n", "    next: " + strings.Repeat("/path", 50) + "\n", strings.Repeat("é", 200) + "\n",
		strings.Repeat(" ", 100) + "x\n", "\n", strings.Repeat("x", 80) + "\n", strings.Repeat("x", 80) + " y\n"} {
		got := fold(text)
		fits(t, got)
		if flat := func(s string) string { return strings.Join(strings.Fields(s), "") }; flat(got) != flat(text) {
			t.Errorf("%q became %q", text, got)
		}
	}
	if got, want := fold("  "+strings.Repeat("a", 70)+" bbbbbbbbbb cc\n"), "  "+strings.Repeat("a", 70)+"\n      bbbbbbbbbb cc\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A hundred VMs with three disks each: every line fits, and the worst come first.
func TestStatusOfAHundredFitsATerminal(t *testing.T) {
	var b bytes.Buffer
	if err := printStatus(&b, hundred(), now); err != nil {
		t.Fatal(err)
	}
	fits(t, b.String())
	last := 0
	rank := map[string]int{"Critical": 0, "Warning": 1, "Normal": 2}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "vm") {
			health := strings.Trim(strings.Fields(line)[2], ",")
			if rank[health] < last {
				t.Fatalf("%q comes after better ones", line)
			}
			last = rank[health]
		}
	}
	if last != 2 {
		t.Errorf("the healthy ones are missing")
	}
}

func hundred() control.Status {
	s := control.Status{Version: "1", Pacer: &control.Pacer{Limited: true, BytesPerSecond: 1 << 20, Throttled: 3, LastThrottled: now}}
	for i := range 100 {
		vm := control.VM{Name: fmt.Sprintf("vm%03d-of-the-production-cluster", i), State: "ResynchronizationRequired", StateSince: now.Add(-time.Hour),
			Health: []control.Health{control.HealthNormal, control.HealthWarning, control.HealthCritical}[i%3], IntervalSeconds: 30,
			Forecast: &control.Forecast{What: "spool", Seconds: 2580, Message: "the spool is full in 43 min: 12 MB/s change, 7.0 MB/s leave"}}
		if i%3 > 0 {
			vm.Reasons = []control.Reason{{Code: "cannot-send", Severity: control.SeverityCritical, Since: now.Add(-time.Minute),
				Message: "ship: ship epoch 12: Get prefix/vm.json: not authorized (status 403) (non-recoverable, not-authorized)",
				Action:  "check target.credentials and the role of the identity; then: vhdrelay resume " + vm.Name}}
		}
		for j := range 3 {
			vm.Disks = append(vm.Disks, control.Disk{Name: fmt.Sprintf("a-directory/with-a-long-name/disk-number-%d-of-this-machine.vhd", j), Format: "vhd-fixed",
				VirtualSize: 1 << 40, PendingBytes: 5 << 30, InitialReplication: control.Transfer{DoneBytes: 1 << 30, TotalBytes: 1 << 40}})
		}
		s.VMs = append(s.VMs, vm)
	}
	return s
}
