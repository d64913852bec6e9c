package dir

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path"
	"sync"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const stateVersion = 1

// state is state.json of a page blob.
type state struct {
	Version  int    `json:"version"`
	Birth    string `json:"birth"`              // random: a blob made anew has other ETags
	Changes  uint64 `json:"changes"`            // grows with every change that somebody may have seen the ETag before
	Sequence int64  `json:"sequence"`           //
	Lease    string `json:"lease,omitempty"`    // id of who holds it, or held it when it was broken
	Broken   bool   `json:"broken,omitempty"`   //
	Snapshot string `json:"snapshot,omitempty"` // newest snapshot id ever given out
}

func (s *state) leased() bool { return s.Lease != "" && !s.Broken }

// allows is AZURE.md 1.4 for the states a lease can have here.
func (s *state) allows(lease string) error {
	switch {
	case !s.leased() && lease == "", s.leased() && lease == s.Lease:
		return nil
	case s.leased():
		return target.ErrLeased
	}
	return target.ErrLeaseLost
}

func (s *state) guard(g target.Guard) error {
	if err := s.allows(g.Lease); err != nil {
		return err
	}
	if g.Sequence >= 0 && g.Sequence != s.Sequence {
		return fmt.Errorf("%w: %d, not %d", target.ErrSequence, s.Sequence, g.Sequence)
	}
	return nil
}

// etag: the counter is raised before the first change after an ETag was given
// out by this process; the time covers another process that writes on.
func (s *state) etag(info iofs.FileInfo) string {
	return fmt.Sprintf(`"%s-%x-%x"`, s.Birth, s.Changes, info.ModTime().UnixNano())
}

func (s *state) matches(etag string, info iofs.FileInfo) error {
	if etag != "" && etag != s.etag(info) {
		return target.ErrCondition
	}
	return nil
}

// blob is what this process knows about a page blob in use.
type blob struct {
	// gate is held shared by puts and exclusively by whoever gives out an ETag
	// or changes the state, I/O included: they have to exclude each other anyway.
	gate sync.RWMutex
	refs int // guarded by Dir.mu

	mu struct {
		sync.Mutex      // held while state.json is rewritten: no put may pass before
		clean      bool // nobody has seen the present ETag, so a change need not change it
	}
}

const keepBlobs = 1024 // entries of Dir.mu.blobs before idle ones are dropped

func (d *Dir) enter(rel string) *blob {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.mu.blobs[rel]
	if b == nil {
		d.dropIdleLocked()
		b = &blob{}
		d.mu.blobs[rel] = b
	}
	b.refs++
	return b
}

func (d *Dir) dropIdleLocked() {
	if len(d.mu.blobs) < keepBlobs {
		return
	}
	for rel, b := range d.mu.blobs {
		if b.refs == 0 {
			delete(d.mu.blobs, rel)
		}
	}
}

func (d *Dir) leave(b *blob) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b.refs--
}

// access is a page blob opened and locked for one call.
type access struct {
	dir  *Dir
	rel  string
	blob *blob
	file *os.File
	info iofs.FileInfo
	state
}

// shared runs f with the blob open for writing pages.
func (d *Dir) shared(ctx context.Context, rel string, f func(a *access) error) error {
	b := d.enter(rel)
	defer d.leave(b)
	b.gate.RLock()
	defer b.gate.RUnlock()
	return d.withBlob(ctx, rel, b, false, os.O_RDWR, f)
}

// exclusive runs f with no other writer of the blob at work.
func (d *Dir) exclusive(ctx context.Context, rel string, f func(a *access) error) error {
	b := d.enter(rel)
	defer d.leave(b)
	b.gate.Lock()
	defer b.gate.Unlock()
	return d.withBlob(ctx, rel, b, true, os.O_RDWR, f)
}

// observe runs f with no put of this process under way; it needs no write access.
func (d *Dir) observe(ctx context.Context, rel string, f func(a *access) error) error {
	b := d.enter(rel)
	defer d.leave(b)
	b.gate.Lock()
	defer b.gate.Unlock()
	return d.withBlob(ctx, rel, b, false, os.O_RDONLY, f)
}

func (d *Dir) withBlob(ctx context.Context, rel string, b *blob, exclusive bool, flag int, f func(a *access) error) error {
	unlock, err := d.lock(ctx, lockPath(rel), exclusive, false)
	if err != nil {
		return err
	}
	defer unlock()
	return d.locked(rel, b, flag, f)
}

// locked opens a blob whose lock is held.
func (d *Dir) locked(rel string, b *blob, flag int, f func(a *access) error) error {
	file, info, err := d.openFile(rel, flag)
	if err != nil {
		return err
	}
	defer file.Close() // what must be durable is synced before
	st, err := d.readState(rel)
	if err != nil {
		return err
	}
	return f(&access{dir: d, rel: rel, blob: b, file: file, info: info, state: st})
}

func lockPath(rel string) string { return path.Join(side(rel), "lock") }

func statePath(rel string) string { return path.Join(side(rel), "state.json") }

func (d *Dir) isBlob(rel string) bool {
	_, err := d.root.Stat(statePath(rel))
	return err == nil
}

func (d *Dir) readState(rel string) (state, error) {
	var s state
	data, err := d.root.ReadFile(statePath(rel))
	if err != nil {
		return s, absent(err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%w: %s: %w", target.ErrDamaged, statePath(rel), err)
	}
	if s.Version != stateVersion {
		return s, fmt.Errorf("%w: %s has version %d", target.ErrVersion, statePath(rel), s.Version)
	}
	return s, nil
}

func (d *Dir) writeState(rel string, s state) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return d.replace(statePath(rel), append(data, '\n'))
}

// save makes a changed state durable.
func (a *access) save() error { return a.dir.writeState(a.rel, a.state) }

// dirty changes the ETag before the first change after somebody may have seen it.
func (a *access) dirty() error {
	a.blob.mu.Lock()
	defer a.blob.mu.Unlock()
	if a.blob.mu.clean {
		return nil
	}
	a.Changes++
	if err := a.save(); err != nil {
		return err
	}
	a.blob.mu.clean = true
	return nil
}

// seen is the ETag, now given out.
func (a *access) seen() (string, error) {
	info, err := a.file.Stat()
	if err != nil {
		return "", err
	}
	a.blob.mu.Lock()
	defer a.blob.mu.Unlock()
	a.blob.mu.clean = false
	return a.etag(info), nil
}

// CreatePages implements target.Target.
func (d *Dir) CreatePages(ctx context.Context, name string, size, sequence int64) error {
	return d.run(ctx, "CreatePages", name, func(rel string) error {
		if err := target.CheckSize(size); err != nil {
			return err
		}
		if err := target.CheckSequence(sequence); err != nil {
			return err
		}
		return d.createBlob(ctx, rel, size, sequence)
	})
}

func (d *Dir) createBlob(ctx context.Context, rel string, size, sequence int64) error {
	if d.present(rel) {
		return target.ErrExists
	}
	b := d.enter(rel)
	defer d.leave(b)
	b.gate.Lock()
	defer b.gate.Unlock()
	unlock, err := d.lockNew(ctx, rel)
	if err != nil {
		return err
	}
	defer unlock()
	if d.present(rel) {
		return target.ErrExists
	}
	s := state{Version: stateVersion, Birth: rand.Text()[:10], Sequence: sequence}
	if err := d.writeState(rel, s); err != nil {
		return err
	}
	d.hook(PointBeforeData)
	if err := d.publishSized(rel, size); err != nil {
		return err
	}
	b.fresh()
	return nil
}

// fresh: nobody can have seen the ETag of a blob just made.
func (b *blob) fresh() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.clean = true
}

func (d *Dir) present(rel string) bool {
	_, err := d.root.Lstat(rel)
	return err == nil
}

func (d *Dir) lockNew(ctx context.Context, rel string) (unlock func(), err error) {
	err = d.inDir(side(rel), func() (err error) {
		unlock, err = d.lock(ctx, lockPath(rel), true, true)
		return err
	})
	return unlock, err
}

func (d *Dir) publishSized(rel string, size int64) error {
	f, temp, err := d.createTemp()
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = d.root.Remove(temp) // swept later if this does not succeed
		return err
	}
	return d.publishTemp(temp, rel)
}

// DeletePages implements target.Target.
func (d *Dir) DeletePages(ctx context.Context, name, lease string) error {
	return d.run(ctx, "DeletePages", name, func(rel string) error { return d.deleteBlob(ctx, rel, lease) })
}

func (d *Dir) deleteBlob(ctx context.Context, rel, lease string) error {
	b := d.enter(rel)
	defer d.leave(b)
	b.gate.Lock()
	defer b.gate.Unlock()
	unlock, err := d.lock(ctx, lockPath(rel), true, false)
	if errors.Is(err, target.ErrNotFound) {
		return d.syncIfThere(path.Dir(rel))
	}
	if err != nil {
		return err
	}
	defer unlock()
	if d.present(rel) {
		if err := d.locked(rel, b, os.O_RDONLY, func(a *access) error { return a.deletable(lease) }); err != nil {
			return err
		}
	}
	if err := d.remove(rel); err != nil {
		return err
	}
	d.hook(PointBeforeSidecar)
	return d.removeSide(rel)
}

func (a *access) deletable(lease string) error {
	if err := a.allows(lease); err != nil {
		return err
	}
	ids, err := a.dir.snapshotIDs(a.rel)
	if err == nil && len(ids) > 0 {
		return target.ErrSnapshots
	}
	return err
}

// removeSide takes away what belonged to a blob that is gone. The state goes
// first: a directory without it is nothing.
func (d *Dir) removeSide(rel string) error {
	if err := d.remove(statePath(rel)); err != nil {
		return err
	}
	d.forgetDir(side(rel))
	return lost(d.root.RemoveAll(side(rel)))
}
