package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// install needs no network: the packages and what they depend on are on the disk.
const install = `export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq /var/local/packages/*.deb
dpkg --audit`

// database is the guest's.
const database = "/var/lib/counter.db"

// counter commits 1, 2, 3, …, each with a text that follows from it, and says each number on the second serial port when its
// commit was durable: synchronous=EXTRA, which also syncs the directory after the rollback journal was removed. FULL does not, and
// a loss of power may then take back the last commit (sqlite.org/pragma.html).
const counter = `#!/bin/sh
stty -F /dev/ttyS1 raw -echo
seq 10000000 | sed "s/.*/INSERT INTO counter VALUES(&,printf('%0512d',&*2654435761)); SELECT &;/" |
	sqlite3 -bail -cmd 'PRAGMA synchronous=EXTRA' ` + database + ` >/dev/ttyS1
`

// Commits before the sync, and after it before the end: at least, and at most so many more.
const (
	commitsBefore = 100
	commitsAfter  = 20
	commitsMore   = 40
)

// loseTheHost lets the guest work, takes the host away, and brings the guest back from the target.
func (x *exercise) loseTheHost(ctx context.Context) error {
	if err := x.work(ctx); err != nil {
		return err
	}
	atLeast, err := x.cut(ctx)
	if err != nil {
		return err
	}
	points, err := x.appliance.Points(ctx, vm, "--target", x.target.URL)
	if err == nil && len(points) == 0 {
		err = errors.New("the target has no point")
	}
	if err != nil {
		return err
	}
	newest := points[len(points)-1]
	promised := max(atLeast, x.acks.until(newest.Time.Add(-clockSlack)))
	x.say("lost: %d commits answered, %d of them before the newest point %s", x.acks.last(), promised, newest.ID)
	x.report.Figure("commits", "%d answered, at least %d promised by point %s", x.acks.last(), promised, newest.ID)
	return x.bringBack(ctx, x.choose(points), promised)
}

// clockSlack is how far a point's time may be from its seal, and a commit from when it was heard of.
const clockSlack = time.Second

// work installs the package and starts the counter.
func (x *exercise) work(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := x.machine.Shell(ctx, install); err != nil {
		return err
	}
	x.say("the guest has installed its package")
	create := fmt.Sprintf("sqlite3 %s 'PRAGMA journal_mode=%s; CREATE TABLE counter(n INTEGER PRIMARY KEY, text TEXT NOT NULL)'", database, x.journal)
	if _, err := x.machine.Shell(ctx, create); err != nil {
		return err
	}
	if err := x.machine.Put(ctx, "/usr/local/bin/counter", counter, 0o755); err != nil {
		return err
	}
	if _, err := x.machine.Run(ctx, "systemd-run", "-q", "--unit=counter", "/usr/local/bin/counter"); err != nil {
		return err
	}
	err := x.await(ctx, "the first point", func(now rig.VM) bool { return now.LastPoint != nil })
	return errors.Join(err, x.acks.await(ctx, commitsBefore))
}

// cut asks for a point while the guest writes and ends guest and appliance a moment later; then the host has nothing any more.
// It returns how many commits were answered before the point was asked for.
func (x *exercise) cut(ctx context.Context) (before int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	before = x.acks.last()
	synced, err := x.appliance.Sync(ctx, vm)
	if err != nil {
		return 0, err
	}
	x.say("sync made point %s after %d commits", synced.Point, before)
	if x.interval {
		before = x.acks.last()
		asked := time.Now()
		err = x.await(ctx, "an interval's point", func(now rig.VM) bool { return now.LastPoint != nil && now.LastPoint.Time.After(asked) })
	}
	more := commitsAfter + rand.New(rand.NewPCG(x.seed, 1)).IntN(commitsMore)
	if err := errors.Join(err, x.acks.await(ctx, x.acks.last()+more)); err != nil {
		return 0, err
	}
	return before, errors.Join(x.machine.Kill(), x.appliance.Kill(), os.RemoveAll(x.appliance.Source), os.RemoveAll(x.appliance.State))
}

// choose returns what to export: the newest, or one that misses answered commits.
func (x *exercise) choose(points []rig.Point) string {
	if x.spoil == "older" {
		return points[max(0, len(points)-3)].ID
	}
	return "latest"
}

// bringBack exports a point from the target alone, proves its file system on this machine, and boots it.
func (x *exercise) bringBack(ctx context.Context, point string, promised int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	began := time.Now()
	restored := filepath.Join(x.dir, "restored.vhd")
	_, err := x.appliance.Run(ctx, "export", vm+"/"+x.image, "--point", point, "--output", restored, "--format", "vhd", "--target", x.target.URL)
	if err != nil {
		return err
	}
	x.report.Figure("export", "%v", time.Since(began).Round(100*time.Millisecond))
	r := &restoredGuest{exercise: x, file: restored, promised: promised}
	x.report.Check(r.provenHere(ctx), "the exported disk")
	if x.spoil == "byte" {
		if err := r.changeByte(ctx); err != nil {
			return err
		}
	}
	if err := r.boot(ctx); err != nil {
		return err
	}
	x.report.Figure("lost to running", "%v", time.Since(began).Round(time.Second))
	return r.examine(ctx)
}
