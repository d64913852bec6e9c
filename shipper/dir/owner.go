package dir

import (
	"context"
	"crypto/rand"
	"errors"
	iofs "io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Who makes files under tmp holds a lock there while it has the target open, and
// what it makes has the lock's name before its own. So what a killed process was
// making is told from what somebody is making now: the copy of a snapshot is as
// large as a disk, and a process that is killed again and again leaves many.

// ownerSuffix is that of a lock's file.
const ownerSuffix = ".lock"

// owner is the lock of this Dir.
type owner struct {
	sync.Mutex // held while the lock is taken, once
	asked      bool
	name       string // "" where the file system has no locks: then only age tells
	unlock     func()
}

// tempName is a new name under tmp. tmp is there.
func (d *Dir) tempName() string {
	d.owner.Lock()
	defer d.owner.Unlock()
	if !d.owner.asked {
		d.owner.asked = true
		name := rand.Text()
		if unlock, err := d.lock(context.Background(), path.Join(tempDir, name+ownerSuffix), true, true); err == nil {
			d.owner.name, d.owner.unlock = name+"-", unlock
		}
	}
	return path.Join(tempDir, d.owner.name+rand.Text())
}

// disown gives the lock back and takes its file away.
func (d *Dir) disown() {
	d.owner.Lock()
	defer d.owner.Unlock()
	if d.owner.unlock == nil {
		return
	}
	_ = d.root.Remove(path.Join(tempDir, strings.TrimSuffix(d.owner.name, "-")+ownerSuffix)) // swept later if this does not succeed
	d.owner.unlock()
	d.owner.unlock = nil
}

// sweepDead removes what processes were making that are no more. Where a lock
// cannot be tried its owner counts as alive.
func (d *Dir) sweepDead(entries []iofs.DirEntry) error {
	for _, e := range entries {
		name, isLock := strings.CutSuffix(e.Name(), ownerSuffix)
		if !isLock {
			continue
		}
		f, err := d.root.OpenFile(path.Join(tempDir, e.Name()), os.O_RDWR, 0)
		if err != nil {
			continue // given back meanwhile
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = d.sweepOwned(entries, name+"-", e.Name())
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// sweepOwned removes what begins with a dead owner's name, and its lock last. An
// owner that made the lock's file a moment ago and does not have it yet finds it
// gone and makes it anew.
func (d *Dir) sweepOwned(entries []iofs.DirEntry, prefix, lock string) error {
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			if err := d.sweepOne(e.Name()); err != nil {
				return err
			}
		}
	}
	return d.sweepOne(lock)
}

func (d *Dir) sweepOne(name string) error {
	err := d.root.Remove(path.Join(tempDir, name))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}
