package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// timeForm is how people are shown times: UTC, like the JSON, to the second.
const timeForm = "2006-01-02 15:04:05Z"

// printStatus writes what somebody wants to read who was woken up: the worst VM first; of each first what is wrong and what
// to do, then how much would be lost, then what is going on.
func printStatus(w io.Writer, s control.Status, now time.Time) error {
	var b bytes.Buffer
	if len(s.VMs) == 0 {
		b.WriteString("no VM: the stores hold no disk image\n")
	}
	if p := s.Pacer; p != nil && p.Limited {
		fmt.Fprintf(&b, "the target throttles: at most %s/s are sent, for all VMs together\n\n", bytesText(p.BytesPerSecond))
	}
	vms := slices.Clone(s.VMs)
	slices.SortStableFunc(vms, func(x, y control.VM) int {
		return cmp.Or(cmp.Compare(healthExit(y.Health), healthExit(x.Health)), cmp.Compare(x.Name, y.Name))
	})
	for i, vm := range vms {
		if i > 0 {
			b.WriteByte('\n')
		}
		writeVM(&b, vm, now)
	}
	if _, err := io.WriteString(w, fold(b.String())); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	return nil
}

func writeVM(b *bytes.Buffer, vm control.VM, now time.Time) {
	fmt.Fprintf(b, "%s: %s, %s", vm.Name, vm.State, vm.Health)
	if !vm.StateSince.IsZero() {
		fmt.Fprintf(b, " (for %s)", age(now.Sub(vm.StateSince)))
	}
	b.WriteByte('\n')
	for _, r := range vm.Reasons {
		writeReason(b, r, now)
	}
	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(b, "  %-11s %s\n", name, text)
		}
	}
	row("RPO", rpoText(vm))
	row("last point", pointText(vm, now))
	row("to ship", fmt.Sprintf("%s changed, %s spooled", bytesText(vm.PendingBytes), bytesText(vm.SpooledBytes)))
	if vm.Forecast != nil {
		row("forecast", vm.Forecast.Message)
	}
	row("to apply", fmt.Sprintf("%s, replica at epoch %d", bytesText(vm.ApplyBacklogBytes), vm.AppliedEpoch))
	row("recovery", recoveryText(vm.Recovery))
	if active := vm.Resync.State != "" && vm.Resync.State != control.ResyncIdle; active || vm.Resync.TotalBytes > 0 {
		row("resync", resyncText(vm.Resync))
	}
	for _, j := range vm.Jobs {
		row("job "+j.ID, jobText(j))
	}
	writeDisks(b, vm.Disks)
}

func writeReason(b *bytes.Buffer, r control.Reason, now time.Time) {
	fmt.Fprintf(b, "  %s %s: %s", strings.ToUpper(string(r.Severity)), r.Code, r.Message)
	if !r.Since.IsZero() {
		fmt.Fprintf(b, " (for %s)", age(now.Sub(r.Since)))
	}
	b.WriteByte('\n')
	if r.Action != "" {
		fmt.Fprintf(b, "    next: %s\n", r.Action)
	}
}

func rpoText(vm control.VM) string {
	interval := age(time.Duration(vm.IntervalSeconds * float64(time.Second)))
	if vm.DurableRPOSeconds == nil {
		return "no recovery point yet; interval " + interval
	}
	return age(time.Duration(*vm.DurableRPOSeconds*float64(time.Second))) + ", interval " + interval
}

func pointText(vm control.VM, now time.Time) string {
	if vm.LastPoint == nil {
		return "none"
	}
	p := vm.LastPoint
	return fmt.Sprintf("%s of %s, %s ago", p.ID, p.Time.UTC().Format(timeForm), age(now.Sub(p.Time)))
}

func recoveryText(r control.Recovery) string {
	if r.SuspectBytes == 0 && r.ComparedBytes == 0 {
		return ""
	}
	text := fmt.Sprintf("%s suspect, %s compared, %s differ", bytesText(r.SuspectBytes), bytesText(r.ComparedBytes),
		bytesText(r.DifferingBytes))
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

func resyncText(r control.Resync) string {
	text := fmt.Sprintf("%s, %s of %s compared (%d %%), %s differ", r.State, bytesText(r.ComparedBytes),
		bytesText(r.TotalBytes), percent(r.ComparedBytes, r.TotalBytes), bytesText(r.DifferingBytes))
	if r.SentBytes > 0 {
		text += ", " + bytesText(r.SentBytes) + " sent"
	}
	if r.Deep {
		text += fmt.Sprintf(", the target was asked %d times and %s were read back", r.Requests, bytesText(r.DownloadedBytes))
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

// writeDisks makes a table. A disk whose initial replication is done says nothing about it.
func writeDisks(b *bytes.Buffer, disks []control.Disk) {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, d := range disks {
		fmt.Fprintf(t, "  disk\t%s\t%s\t%s", d.Name, d.Format, bytesText(d.VirtualSize))
		if d.PendingBytes > 0 {
			fmt.Fprintf(t, "\t%s changed", bytesText(d.PendingBytes))
		}
		if ir := d.InitialReplication; ir.DoneBytes < ir.TotalBytes {
			fmt.Fprintf(t, "\tinitial replication %s of %s (%d %%)", bytesText(ir.DoneBytes), bytesText(ir.TotalBytes),
				percent(ir.DoneBytes, ir.TotalBytes))
		}
		fmt.Fprintln(t)
	}
	// A tabwriter over a bytes.Buffer cannot fail.
	_ = t.Flush()
	for _, d := range disks {
		if len(d.Chain) > 1 {
			fmt.Fprintf(b, "  chain %s\n", strings.Join(d.Chain, " over "))
		}
		if d.ChainError != "" {
			fmt.Fprintf(b, "  chain broken: %s\n", d.ChainError)
		}
	}
}
