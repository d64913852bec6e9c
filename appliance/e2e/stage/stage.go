package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// Env is what all stages share.
type Env struct {
	Dir    string // for everything; a stage uses Dir/NAME
	Binary string // of the appliance
	Short  bool   // about a tenth of the time
	Seed   uint64
	Out    io.Writer      // progress, a line each
	Azure  bool           // Azurite as the target, else a directory
	At     *regexp.Regexp // of the stage failpoints, the points whose name matches; nil: all
	Ends   int            // of processes in stage handover; 0: its own number
}

// Stage is one long test.
type Stage struct {
	Name  string
	About string
	Run   func(ctx context.Context, e *Env, r *Report) error
}

// All are the stages in the order they run.
var All = []Stage{
	{"load", "a guest's load: every point is one admissible cut, file systems and database are whole", Load},
	{"fsx", "a million random operations at the mount: plain files stay equal, and so do points", Fsx},
	{"format", "the replica as downloaded is a fixed VHD to others", Format},
	{"sparse", "24 GiB with little data: the data is moved, not the holes", Sparse},
	{"outage", "the target away under load: no guest error, no slower write, within the quota", Outage},
	{"away6", "six minutes without the target: tried as the schedule says, Normal, Warning and Normal again, replicating within five seconds of its return", Away6},
	{"quota", "a spool far too small for an outage: it converges, points resume", Quota},
	{"storm", "faults, kills, a small spool and a lost state directory together", Storm},
	{"synced", "a write that is durable when answered survives a power cut, in an active region", Synced},
	{"powercut", "ext4 shut down under store and state: acknowledged points stay, store and target agree", PowerCut},
	{"clients", "programs that exist work at the mount: no error for them, and the newest point is what they left", Clients},
	{"formats", "qemu writes dynamic VHD and VHDX at the mount: every point is what qemu reads from the image", Formats},
	{"formats-kills", "qemu writes them without a pause while the appliance, its mount or qemu is killed: every point is one admissible cut", Unquiet},
	{"changed", "a disk changed while nothing served it: what was changed is sent; pause and kill in the middle compare nothing twice", Changed},
	{"damaged", "the replica damaged by others: found to the block, repaired, and one request if it was not", Damaged},
	{"rebuilt", "the state directory lost, then the machine: what the target has is not sent again", Rebuilt},
	{"overrun", "three times the spool changed during a resync: it ends, old points stay, new ones come", Overrun},
	{"crashes", "500 kills and 500 power cuts at random moments, a point judged after each; resumes within the stage", Crashes},
	{"failpoints", "SIGKILL and a power cut at every failpoint of the data path", Failpoints},
	{"handover", "the process that serves ends again and again under load, the next one takes over: no guest sees an error", Handover},
	{"kills", "SIGKILL at random moments: replication goes on, only active regions are suspect", Kills},
}

// Report collects what a stage measured and what it found wrong.
type Report struct {
	// mu is held for memory only.
	mu struct {
		sync.Mutex
		figures  []Figure
		failures []string
	}
	out io.Writer
}

// Figure is something measured.
type Figure struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// NewReport returns a report whose failures are also printed, at once.
func NewReport(out io.Writer) *Report { return &Report{out: out} }

// Figure notes a measurement.
func (r *Report) Figure(name, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.figures = append(r.mu.figures, Figure{name, fmt.Sprintf(format, args...)})
}

// Fail notes a failure; the stage goes on.
func (r *Report) Fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.mu.Lock()
	r.mu.failures = append(r.mu.failures, text)
	r.mu.Unlock()
	fmt.Fprintf(r.out, "%s FAIL %s\n", time.Now().UTC().Format(time.TimeOnly), text)
}

// Check notes err as a failure, if there is one, and says whether there is none.
func (r *Report) Check(err error, format string, args ...any) bool {
	if err != nil {
		r.Fail("%s: %v", fmt.Sprintf(format, args...), err)
	}
	return err == nil
}

// Figures returns what was measured.
func (r *Report) Figures() []Figure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Figure{}, r.mu.figures...)
}

// Failures returns what was found wrong.
func (r *Report) Failures() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.mu.failures...)
}

func (e *Env) say(format string, args ...any) {
	fmt.Fprintf(e.Out, "%s %s\n", time.Now().UTC().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// scale is the time in full, or a tenth of it.
func (e *Env) scale(full time.Duration) time.Duration {
	if e.Short {
		return full / 10
	}
	return full
}

func (e *Env) count(full, short int) int {
	if e.Short {
		return short
	}
	return full
}

func (e *Env) rng(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(e.Seed, stream)) }

// fresh is the stage's directory, empty.
func (e *Env) fresh(name string) (string, error) {
	dir := filepath.Join(e.Dir, name)
	if err := remove(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// remove removes a stage's directory, and unmounts what an interrupted run left in it.
func remove(dir string) error {
	unmountExports(dir)
	for _, at := range []string{"sql", "tree", "check", "mount", "host"} {
		rig.Detached(filepath.Join(dir, at))
	}
	if err := rig.Thaw(filepath.Join(dir, "mount")); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Clean removes everything the stages left.
func (e *Env) Clean() error {
	entries, err := os.ReadDir(e.Dir)
	for _, entry := range entries {
		if !entry.IsDir() {
			continue // a ledger or a binary
		}
		err = errors.Join(err, remove(filepath.Join(e.Dir, entry.Name())))
	}
	return errors.Join(err, os.RemoveAll(e.Dir))
}

// appliance makes a stage's directory and target, and an appliance in them that has not been started. The returned function
// ends both.
func (e *Env) appliance(ctx context.Context, name string, opts rig.Options) (*rig.Rig, *rig.Target, func() error, error) {
	dir, err := e.fresh(name)
	if err != nil {
		return nil, nil, nil, err
	}
	target, err := e.target(ctx, dir)
	if err != nil {
		return nil, nil, nil, err
	}
	opts.Dir, opts.Binary, opts.URL, opts.Key = dir, e.Binary, target.URL, target.Key
	a, err := rig.New(opts)
	if err != nil {
		return nil, nil, nil, errors.Join(err, target.Close())
	}
	return a, target, func() error { return errors.Join(a.Close(), target.Close()) }, nil
}

// target starts what the stage replicates to.
func (e *Env) target(ctx context.Context, dir string) (*rig.Target, error) {
	if !e.Azure {
		return rig.DirTarget(filepath.Join(dir, "replicas"))
	}
	return rig.AzureTarget(ctx, filepath.Join(dir, "azurite"))
}
