package health

import (
	"fmt"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// The codes of reasons. They never change.
const (
	CannotSend        = "cannot-send"
	Defect            = "defect"
	Fenced            = "fenced"
	ResyncRequired    = "resynchronization-required"
	BadImage          = "bad-image"
	ChainBroken       = "chain-broken"
	ImageIncomplete   = "image-incomplete"
	ImageUntracked    = "image-untracked"
	ImageRefused      = "image-refused"
	CyclesMissed      = "cycles-missed"
	RPOExceeded       = "rpo-exceeded"
	CycleLatency      = "cycle-latency"
	InitialUnfinished = "initial-replication"
	VMPaused          = "paused"
	SpoolOverHalf     = "spool-over-half"
	StateDiskFull     = "state-disk-full"
	Retrying          = "retrying"
	Resynchronizing   = "resynchronizing"
	ComparisonFailed  = "comparison-failed"
	JournalFailing    = "journal-failing"
	UnprotectedFormat = "unprotected-format"
	NoDisks           = "no-disks"
	Leaving           = "leaving"
	ConfigInvalid     = "config-invalid"

	// Of a store around its VMs.
	ForeignWriter  = "foreign-writer"
	StoreUnmounted = "store-unmounted"
	SourceShadowed = "source-shadowed"
	NestedMount    = "nested-mount"
	VMMoved        = "vm-moved"
)

// Meaning is one line of the table of codes.
type Meaning struct {
	Code     string
	Severity control.Severity
	Means    string
	Do       string
}

// Codes are all codes a reason can have, the worst first.
var Codes = []Meaning{
	{CannotSend, control.SeverityCritical, "the target or this host refuses the work, and trying again would not help; `cause` has the code of the error", "what the message says, then `vhdrelay resume VM`"},
	{Defect, control.SeverityCritical, "vhdrelay broke a rule of its own; nothing is tried again", "report it with the log; `vhdrelay resume VM` tries again"},
	{Fenced, control.SeverityCritical, "another host has taken the VM over; this one never writes to its replica again", "shut the VM down on one of the two; `vhdrelay adopt VM` on the one that shall own it"},
	{ResyncRequired, control.SeverityCritical, "points pause: the spool reached its quota, half of a disk changed unshipped, a table was lost, or a disk waits for its comparison", "nothing: it catches up as soon as the target takes the changes"},
	{BadImage, control.SeverityCritical, "an image cannot be read as what its name says", "repair or remove the image, then `vhdrelay resume VM`"},
	{ChainBroken, control.SeverityCritical, "a differencing image lies over something that is not there, or is not what it was: the message names the link; its disk has no points", "put the image that is named into its place, as it was; unless that was at the mount, then `vhdrelay resume VM`"},
	{ImageUntracked, control.SeverityCritical, "an image is served, and its changes are not tracked", "mend the cause, then restart vhdrelay: the image is compared whole"},
	{ImageRefused, control.SeverityCritical, "an image can be neither tracked nor marked as changed, so writes to it fail", "mend the cause, then restart vhdrelay: the image is compared whole"},
	{ForeignWriter, control.SeverityCritical, "another process has an image open behind the mount: what it writes is not seen", "stop that process; disks are opened at the mount only"},
	{StoreUnmounted, control.SeverityCritical, "the store was unmounted with `vhdrelay unmount`", "restart vhdrelay to serve it again"},
	{SourceShadowed, control.SeverityCritical, "the source directory is another one now: it was moved, or something is mounted over it", "undo it, then restart vhdrelay"},
	{CyclesMissed, control.SeverityWarning, "more than 20 % of the cycles of the last hour (or of five intervals) had no point before the next but one seal was due", "look at the other reasons; a faster line, a longer interval, or less change"},
	{RPOExceeded, control.SeverityWarning, "changes wait, and there has been no point for an hour, or five intervals if that is longer", "look at the other reasons; `vhdrelay sync VM` tries at once"},
	{CycleLatency, control.SeverityWarning, "the cycles of the last hour took more than 5 minutes from seal to point, on average", "a faster line, or `replication.compression: better`"},
	{ImageIncomplete, control.SeverityWarning, "an image is empty, cut, or without its footer: it is still being copied, or never will be whole", "finish copying the image, or remove it"},
	{InitialUnfinished, control.SeverityWarning, "a disk has not been copied whole, so there is no point that holds it", "nothing: wait for it to end"},
	{VMPaused, control.SeverityWarning, "an operator paused the VM: nothing is sent, changes wait in the spool", "`vhdrelay resume VM`"},
	{SpoolOverHalf, control.SeverityWarning, "more than half of the spool's quota is taken", "look at the target and the line to it, or raise `replication.spool_limit`"},
	{StateDiskFull, control.SeverityWarning, "the file system of the state directory has so little space that the spool has no room for an epoch: seals wait", "free space there: all spools together take at most half of it"},
	{Retrying, control.SeverityWarning, "something failed that time mends; `cause` has the code of the error, the message when it is tried next", "nothing, or what the message says; `vhdrelay sync VM` tries at once"},
	{Resynchronizing, control.SeverityWarning, "a disk is compared with its checksum table; points pause meanwhile", "nothing: wait for it to end"},
	{ComparisonFailed, control.SeverityWarning, "a comparison ended early; it is tried again", "look at the image and at the disk of the state directory"},
	{JournalFailing, control.SeverityWarning, "the state directory takes no records: changes are marked on the images, a crash now costs a whole comparison", "look at the disk of the state directory"},
	{UnprotectedFormat, control.SeverityWarning, "files whose format is served but not protected", "convert them to a fixed VHD or raw"},
	{ConfigInvalid, control.SeverityWarning, "the config file does not read; what was in force before it was changed goes on", "mend it (`vhdrelay check-config`), then `systemctl reload vhdrelay`"},
	{NestedMount, control.SeverityWarning, "what is mounted inside a source is not served", "mount it elsewhere, or make it the source of a store of its own"},
	{VMMoved, control.SeverityWarning, "images went to another VM with the renaming of a directory", "nothing, if it was meant: the points of the old name stay"},
	{NoDisks, control.SeverityWarning, "the VM has no disk any more; the points made so far stay", "`vhdrelay unprotect VM`, if they were removed on purpose"},
	{Leaving, control.SeverityWarning, "an unprotect has not come to its end: the target does not answer, or files are in use", "look at the message; `vhdrelay unprotect VM --delete-replica` tries at once, without the flag the replica stays"},
}

// MeaningOf finds the line of a code; false for a code that no reason has.
func MeaningOf(code string) (Meaning, bool) {
	for _, m := range Codes {
		if m.Code == code {
			return m, true
		}
	}
	return Meaning{}, false
}

// Table is Codes as Markdown: "what each message means" of the README.
func Table() string {
	var b strings.Builder
	b.WriteString("| code | severity | what it means | what to do |\n|---|---|---|---|\n")
	for _, m := range Codes {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Code, m.Severity, m.Means, m.Do)
	}
	return b.String()
}

// CauseTable is the codes of errors as Markdown.
func CauseTable(errors []retry.Meaning) string {
	var b strings.Builder
	b.WriteString("| code | class | what to do |\n|---|---|---|\n")
	for _, m := range errors {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.Code, m.Class, m.Action)
	}
	return b.String()
}

// Begin and End enclose a generated part of a page.
const (
	Begin = "<!-- generated from package health: begin -->\n"
	End   = "<!-- end -->\n"
)
