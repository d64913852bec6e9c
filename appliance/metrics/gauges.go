package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// Facts are what is read at a scrape.
type Facts struct {
	Status control.Status
	Jobs   []control.Job
	// Quotas are what the spool of each VM may take, in bytes.
	Quotas map[string]int64
	// Limit is what may be sent now, in bytes a second, 0 for no limit.
	Limit   int64
	Journal Journal
}

// Journal is what the change log counts since its start.
type Journal struct {
	Commits, Activations, Deactivations, Evictions, SavedBytes, ActiveRegions int64
	Failing                                                                   bool
}

// gauges reads the facts at every scrape.
type gauges struct {
	version string
	read    func() Facts
}

// emit sends one value.
type emit func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vhdrelay_"+name, help, labels, nil)
}

var (
	descBuild    = describe("build_info", "The release that runs.", "version")
	descHealth   = describe("vm_health", "0 normal, 1 warning, 2 critical.", "vm")
	descState    = describe("vm_state", "1 for the state the VM is in.", "vm", "state")
	descReason   = describe("vm_reason", "1 for every reason why the VM is not healthy.", "vm", "code", "severity")
	descInterval = describe("vm_interval_seconds", "How often the VM is to have a recovery point.", "vm")
	descRPO      = describe("vm_durable_rpo_seconds", "Age of the newest recovery point at the target.", "vm")
	descPoint    = describe("vm_last_point_timestamp_seconds", "When the newest recovery point was sealed.", "vm")
	descPending  = describe("vm_pending_bytes", "Changed and not sealed yet.", "vm")
	descSpooled  = describe("vm_spooled_bytes", "Sealed and in the spool.", "vm")
	descQuota    = describe("vm_spool_quota_bytes", "What the spool may take.", "vm")
	descBacklog  = describe("vm_apply_backlog_bytes", "Recorded and not in the replica yet.", "vm")
	descCompared = describe("vm_resync_compared_bytes", "Compared in the running resync or the last.", "vm")
	descToComp   = describe("vm_resync_total_bytes", "To be compared in it.", "vm")
	descDiffer   = describe("vm_resync_differing_bytes", "Found different in it.", "vm")
	descSize     = describe("disk_virtual_size_bytes", "Size of the virtual disk.", "vm", "disk")
	descInitial  = describe("disk_initial_replication_bytes", "Of the disk, what initial replication has done.", "vm", "disk")
	descActive   = describe("disk_active_regions", "Regions in the activity log.", "vm", "disk")
	descJobs     = describe("jobs", "Jobs in the table.", "kind", "state")
	descLimit    = describe("bandwidth_limit_bytes_per_second", "What may be sent now, 0 for no limit.")
	descPacer    = describe("pacer_limited", "1 while the target's throttling limits the rate.")
	descRefusals = describe("target_throttled_total", "Requests that the target refused because they were too many.")

	descCommits   = describe("journal_commits_total", "Synced commits of the journal.")
	descActivate  = describe("activity_activations_total", "Regions that entered the activity log.")
	descLeave     = describe("activity_deactivations_total", "Regions that left it.")
	descEvictions = describe("activity_evictions_total", "Regions that were evicted from it.")
	descSaved     = describe("journal_saved_bytes_total", "Blocks saved for captures.")
	descRegions   = describe("activity_regions", "Regions in the activity log of all disks.")
	descFailing   = describe("journal_failing", "1 while the journal takes no records.")
)

// Describe sends nothing: what is there depends on the VMs.
func (g *gauges) Describe(chan<- *prometheus.Desc) {}

// Collect reads the facts once.
func (g *gauges) Collect(out chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
	}
	f := g.read()
	send(descBuild, prometheus.GaugeValue, 1, g.version)
	for _, vm := range f.Status.VMs {
		vmGauges(vm, send)
	}
	for vm, quota := range f.Quotas {
		send(descQuota, prometheus.GaugeValue, float64(quota), vm)
	}
	f.ofJobs(send)
	f.ofAppliance(send)
}

func vmGauges(vm control.VM, send emit) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		send(desc, prometheus.GaugeValue, value, append([]string{vm.Name}, labels...)...)
	}
	gauge(descHealth, map[control.Health]float64{control.HealthNormal: 0, control.HealthWarning: 1}[vm.Health]+critical(vm.Health))
	gauge(descState, 1, vm.State)
	seen := map[string]bool{}
	for _, r := range vm.Reasons {
		if !seen[r.Code] { // one code may stand for several disks
			gauge(descReason, 1, r.Code, string(r.Severity))
		}
		seen[r.Code] = true
	}
	gauge(descInterval, vm.IntervalSeconds)
	if vm.DurableRPOSeconds != nil {
		gauge(descRPO, *vm.DurableRPOSeconds)
	}
	if vm.LastPoint != nil {
		gauge(descPoint, float64(vm.LastPoint.Time.UnixMilli())/1000)
	}
	gauge(descPending, float64(vm.PendingBytes))
	gauge(descSpooled, float64(vm.SpooledBytes))
	gauge(descBacklog, float64(vm.ApplyBacklogBytes))
	gauge(descCompared, float64(vm.Resync.ComparedBytes))
	gauge(descToComp, float64(vm.Resync.TotalBytes))
	gauge(descDiffer, float64(vm.Resync.DifferingBytes))
	for _, d := range vm.Disks {
		gauge(descSize, float64(d.VirtualSize), d.Name)
		gauge(descInitial, float64(d.InitialReplication.DoneBytes), d.Name)
		gauge(descActive, float64(d.ActiveRegions), d.Name)
	}
}

// critical is 2 for every health that this version does not know too: it is no good news.
func critical(h control.Health) float64 {
	if h == control.HealthNormal || h == control.HealthWarning {
		return 0
	}
	return 2
}

func (f Facts) ofJobs(send emit) {
	type sort struct {
		kind  control.JobKind
		state control.JobState
	}
	count := map[sort]int{}
	for _, j := range f.Jobs {
		count[sort{j.Kind, j.State}]++
	}
	for s, n := range count {
		send(descJobs, prometheus.GaugeValue, float64(n), string(s.kind), string(s.state))
	}
}

func (f Facts) ofAppliance(send emit) {
	send(descLimit, prometheus.GaugeValue, float64(f.Limit))
	if p := f.Status.Pacer; p != nil {
		send(descPacer, prometheus.GaugeValue, flag(p.Limited))
		send(descRefusals, prometheus.CounterValue, float64(p.Throttled))
	}
	j := f.Journal
	send(descCommits, prometheus.CounterValue, float64(j.Commits))
	send(descActivate, prometheus.CounterValue, float64(j.Activations))
	send(descLeave, prometheus.CounterValue, float64(j.Deactivations))
	send(descEvictions, prometheus.CounterValue, float64(j.Evictions))
	send(descSaved, prometheus.CounterValue, float64(j.SavedBytes))
	send(descRegions, prometheus.GaugeValue, float64(j.ActiveRegions))
	send(descFailing, prometheus.GaugeValue, flag(j.Failing))
}

func flag(on bool) float64 {
	if on {
		return 1
	}
	return 0
}
