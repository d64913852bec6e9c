package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Journal is the open journal of one appliance.
type Journal struct {
	store kv.Store
	opts  Options
	log   *slog.Logger
	clean bool // the last stop was

	session  sessionRecord // of this run
	previous sessionRecord // of the run before; zero if there was none
	beat     *heartbeat

	commit activator
	health health
	stats  counters
	mutant mutant

	stop chan struct{} // closed by Close: ends the loop that leaves the failing state
	wg   sync.WaitGroup

	mu struct { // guards the list of VMs; held over loading one from the store, never by a write
		sync.Mutex
		vms    map[string]*VM
		closed bool
	}
}

// mutant breaks a rule on purpose: the tests that guard it must go red.
type mutant struct {
	skipSync bool // deactivate at spool, without a Datasync
}

type counters struct {
	commits, activations, deactivations, evictions, saved atomic.Int64
}

// Stats are counts since Open and the present state.
type Stats struct {
	Commits       int64 // synced store commits of the activity log
	Activations   int64 // regions
	Deactivations int64 // regions
	Evictions     int64 // regions
	Active        int64 // regions active now, all disks
	SavedBytes    int64 // of blocks saved for sealed epochs
	Failing       bool
}

// Open opens the journal in store, which it does not own: close it after the
// journal. Recovery steps 1 to 3 of README.md are done when it returns, among
// them that the clean flag is gone. Errors: ErrNewer, ErrFormat, the store's.
func Open(store kv.Store, opts Options) (*Journal, error) {
	opts.defaults()
	j := &Journal{store: store, opts: opts, log: opts.Log, stop: make(chan struct{})}
	j.mu.vms = make(map[string]*VM)
	if err := j.climb(); err != nil {
		return nil, err
	}
	if err := j.startSession(); err != nil {
		return nil, err
	}
	if err := j.openSaved(); err != nil {
		return nil, err
	}
	return j, nil
}

func (o *Options) defaults() {
	if o.ActivityRegions <= 0 {
		o.ActivityRegions = DefaultActivityRegions
	}
	if o.ActivationTimeout <= 0 {
		o.ActivationTimeout = DefaultActivationTimeout
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = DefaultHeartbeat
	}
	if o.Retry <= 0 {
		o.Retry = DefaultRetry
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Boot == nil {
		o.Boot = hostBoot
	}
}

// climb brings the store to the current rung of the ladder (R1).
func (j *Journal) climb() error {
	current := strconv.Itoa(formatCurrent)
	raw, err := j.store.Get([]byte(keyVersion))
	switch {
	case err != nil && !isNotFound(err):
		return fmt.Errorf("read journal version: %w", err)
	case err == nil && string(raw) == current:
		return nil
	case err == nil:
		if err := checkVersion(raw); err != nil {
			return err
		}
	}
	var b kv.Batch
	b.Put([]byte(keyVersion), []byte(current))
	if err := j.store.Apply(&b); err != nil {
		return fmt.Errorf("write journal version: %w", err)
	}
	return nil
}

func checkVersion(raw []byte) error {
	v, err := strconv.Atoi(string(raw))
	switch {
	case err != nil || v < formatFirst:
		return fmt.Errorf("%w: version %q", ErrFormat, raw)
	case v > formatCurrent:
		return newerError(v)
	}
	return nil
}

// startSession takes the clean flag away and names this run, in one commit (R2).
func (j *Journal) startSession() error {
	if _, err := getJSON(j.store, keySession, &j.previous); err != nil {
		return err
	}
	var c cleanRecord
	found, err := getJSON(j.store, keyClean, &c)
	if err != nil {
		return err
	}
	j.clean = found && c.Session == j.previous.ID
	j.session = sessionRecord{ID: uuid.NewString(), Previous: j.previous.ID, Boot: j.opts.Boot().ID, Started: j.opts.Now().UTC()}
	var b kv.Batch
	b.Delete([]byte(keyClean))
	if err := putJSON(&b, keySession, j.session); err != nil {
		return err
	}
	if err := j.store.Apply(&b); err != nil {
		return fmt.Errorf("start session: %w", err)
	}
	j.hook(AfterSessionStart)
	return nil
}

// openSaved empties what a crash left of saved blocks and opens the heartbeat (R3).
func (j *Journal) openSaved() error {
	if j.opts.Saved == "" {
		return nil
	}
	if err := os.MkdirAll(j.opts.Saved, 0o700); err != nil {
		return fmt.Errorf("saved-block directory: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(j.opts.Saved, "*"+savedSuffix))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	if err != nil {
		return fmt.Errorf("empty saved-block directory: %w", err)
	}
	j.beat, err = openHeartbeat(filepath.Join(j.opts.Saved, "heartbeat"))
	return err
}

// WasClean says whether the run before this one stopped cleanly.
func (j *Journal) WasClean() bool { return j.clean }

// Session returns the id of the run before this one ("" if there was none),
// whether PublishSession was called in it, and the id of this run. The owner
// keeps a copy of the id at the store root: it must equal previous, or, if that
// was not published, the one before (third result of Ancestor).
func (j *Journal) Session() (previous, current string, published bool) {
	return j.previous.ID, j.session.ID, j.previous.Published
}

// Ancestor returns the id of the run before the previous one.
func (j *Journal) Ancestor() string { return j.previous.Previous }

// PublishSession records that the current id is durable at the store root.
func (j *Journal) PublishSession() error {
	j.session.Published = true
	return j.saveJSON(keySession, j.session)
}

// Load reads the document key into v; false if there is none. Key is any
// non-empty string of other rooms, up to 1,000 bytes.
func (j *Journal) Load(key string, v any) (bool, error) { return getJSON(j.store, preDoc+key, v) }

// Save writes v as the document key; on stable storage when it returns. A
// document may have 500 KiB.
func (j *Journal) Save(key string, v any) error { return j.saveJSON(preDoc+key, v) }

// Remove deletes the document key, which may be absent; durable when it returns.
func (j *Journal) Remove(key string) error {
	var b kv.Batch
	b.Delete([]byte(preDoc + key))
	if err := j.store.Apply(&b); err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}

// Keys lists the keys of documents that begin with prefix, in byte order.
func (j *Journal) Keys(prefix string) ([]string, error) {
	var keys []string
	err := j.store.Scan([]byte(preDoc+prefix), func(k, _ []byte) error {
		keys = append(keys, string(k[len(preDoc):]))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s…: %w", prefix, err)
	}
	return keys, nil
}

func (j *Journal) saveJSON(key string, v any) error {
	var b kv.Batch
	if err := putJSON(&b, key, v); err != nil {
		return err
	}
	if err := j.store.Apply(&b); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// Stats returns counts since Open.
func (j *Journal) Stats() Stats {
	s := Stats{
		Commits: j.stats.commits.Load(), Activations: j.stats.activations.Load(), Deactivations: j.stats.deactivations.Load(),
		Evictions: j.stats.evictions.Load(), SavedBytes: j.stats.saved.Load(), Failing: j.Failing() != nil,
	}
	for _, d := range j.disks() {
		s.Active += d.regions.active.Load()
	}
	return s
}

func (j *Journal) hook(point string) {
	if j.opts.Hook != nil {
		j.opts.Hook(point)
	}
}

// disks returns every attached disk.
func (j *Journal) disks() []*Disk {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []*Disk
	for _, vm := range j.mu.vms {
		out = append(out, vm.Disks()...)
	}
	return out
}

// Close is the clean stop: images synced, change sets and facts written, the
// flags last. No write may be in flight and no epoch sealed (ErrBusy,
// ErrSealed: nothing happened, call again). After any other error the stop is
// not clean, which costs a comparison at the next start and nothing else. The
// store stays open. ctx bounds the wait for the background loop only.
func (j *Journal) Close(ctx context.Context) error {
	vms := j.vmList()
	for _, vm := range vms {
		if err := vm.quiet(); err != nil {
			return err
		}
	}
	j.mu.Lock()
	closed := j.mu.closed
	j.mu.closed = true
	j.mu.Unlock()
	if closed {
		return nil
	}
	close(j.stop)
	err := j.stopClean(vms)
	for _, d := range j.disks() {
		err = errors.Join(err, d.saved.close())
	}
	return errors.Join(err, j.beat.close(), j.await(ctx))
}

func (j *Journal) await(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		j.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *Journal) stopClean(vms []*VM) error {
	if err := j.Failing(); err != nil {
		return err
	}
	j.commit.Lock()
	defer j.commit.Unlock()
	j.hook(BeforeCleanSets)
	for _, vm := range vms {
		for _, d := range vm.Disks() {
			if err := d.stopClean(); err != nil {
				return fmt.Errorf("stop disk %s: %w", d.Name(), err)
			}
		}
		if err := vm.stopClean(); err != nil {
			return err
		}
	}
	j.hook(AfterCleanSets)
	if err := j.saveJSON(keyClean, cleanRecord{Session: j.session.ID, Time: j.opts.Now().UTC()}); err != nil {
		return err
	}
	j.hook(AfterCleanFlag)
	return nil
}

func (j *Journal) vmList() []*VM {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]*VM, 0, len(j.mu.vms))
	for _, vm := range j.mu.vms {
		out = append(out, vm)
	}
	return out
}

func isNotFound(err error) bool { return errors.Is(err, kv.ErrNotFound) }
