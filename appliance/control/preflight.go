package control

// CheckResult is the verdict of one check.
type CheckResult string

// The verdicts, from good to bad.
const (
	CheckPass CheckResult = "pass"
	CheckWarn CheckResult = "warn"
	CheckFail CheckResult = "fail"
)

// Preflight is what `preflight --json` prints.
type Preflight struct {
	Checks []Check `json:"checks"`
	// Moves says what initial replication has to move, a line a VM that is not protected yet.
	Moves []Move `json:"moves"`
}

// Check is one prerequisite or limit.
type Check struct {
	// Code is stable, for scripts.
	Code   string      `json:"code"`
	Result CheckResult `json:"result"`
	// VM and Disk are what it is about; "": the host, or all of them.
	VM      string `json:"vm,omitempty"`
	Disk    string `json:"disk,omitempty"`
	Message string `json:"message"`
	// Action is the next thing to do, "" where nothing is.
	Action string `json:"action,omitempty"`
}

// Move is how much of a VM has to be sent before its first point.
type Move struct {
	VM string `json:"vm"`
	// Bytes are allocated and not known to be at the target; VirtualBytes is the size of the disks.
	Bytes        int64 `json:"bytes"`
	VirtualBytes int64 `json:"virtual_bytes"`
	// RateBytesPerSecond is what the line to the target was measured to take, 0 if it was not.
	RateBytesPerSecond int64 `json:"rate_bytes_per_second"`
	// Seconds is how long that takes at the rate, null if it is not known.
	Seconds *float64 `json:"seconds"`
}

// Worst is the worst verdict, CheckPass for no check at all.
func (p Preflight) Worst() CheckResult {
	worst := CheckPass
	for _, c := range p.Checks {
		if c.Result == CheckFail || worst == CheckPass {
			worst = c.Result
		}
	}
	return worst
}

// Normal returns p with every list that JSON must show as [] made non-nil.
func (p Preflight) Normal() Preflight {
	p.Checks = append([]Check{}, p.Checks...)
	p.Moves = append([]Move{}, p.Moves...)
	return p
}
