package stage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// linux is a VM as people have them: two databases on one disk, a tree of files on the other, both ext4 on a loop device.
// It knows what both were told is on stable storage, and that the tree names no transaction before it was committed.
type linux struct {
	env       *Env
	rig       *rig.Rig
	vm        string
	sql, tree *rig.Loop
	committed atomic.Int64 // newest transaction that the database with a write-ahead log has answered
	rolled    atomic.Int64 // that the one with a rollback journal has
	made      time.Time    // when both file systems were there
	written   atomic.Int64 // newest file of the tree whose name is synced
	running   *running
	scratch   string
}

var linuxDisks = []disk{{name: "sql.raw", size: 160 << 20}, {name: "tree.vhd", size: 160 << 20}}

// newLinux makes the images in the store, before the appliance sees it.
func newLinux(ctx context.Context, e *Env, appliance *rig.Rig) (*linux, error) {
	x := &linux{env: e, rig: appliance, vm: "linux", scratch: filepath.Join(appliance.Dir, "export-linux")}
	for _, d := range linuxDisks {
		if err := createDisk(ctx, filepath.Join(appliance.Source, x.vm, d.name), d.size); err != nil {
			return nil, err
		}
	}
	x.sql = &rig.Loop{File: filepath.Join(appliance.Mount, x.vm, "sql.raw"), Dir: filepath.Join(appliance.Dir, "sql")}
	x.tree = &rig.Loop{File: filepath.Join(appliance.Mount, x.vm, "tree.vhd"), Dir: filepath.Join(appliance.Dir, "tree")}
	return x, nil
}

// start makes both file systems through the mount and sets database and tree to work.
func (x *linux) start(ctx context.Context) error {
	err := errors.Join(x.sql.Format(ctx, 0), x.tree.Format(ctx, 0))
	x.made = time.Now()
	if err == nil {
		err = errors.Join(x.sql.Mount(ctx), x.tree.Mount(ctx, "discard"))
	}
	if err != nil {
		return errors.Join(err, x.sql.Abandon(), x.tree.Abandon())
	}
	ctx, cancel := context.WithCancel(ctx)
	run := &running{cancel: cancel, done: make(chan error, 1)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.database(ctx, walFile, walMode, &x.committed) })
	g.Go(func() error { return x.database(ctx, rollbackFile, rollbackMode, &x.rolled) })
	g.Go(func() error { return x.files(ctx) })
	go func() { run.done <- g.Wait() }()
	x.running = run
	return nil
}

// stop ends both and unmounts.
func (x *linux) stop() error {
	if x.running == nil {
		return nil
	}
	x.running.cancel()
	err := <-x.running.done
	x.running = nil
	return errors.Join(err, x.sql.Unmount(), x.tree.Unmount())
}

// The databases: their files, and how each journals; the answer is the mode. With a rollback journal and FULL a transaction that
// was answered may still be rolled back after a power cut, because nobody syncs the removal of the journal, so it is EXTRA; with
// a write-ahead log FULL suffices (sqlite.org/pragma.html, synchronous).
const (
	walFile, walMode           = "db", "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; "
	rollbackFile, rollbackMode = "rollback", "PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA; "

	schema = "CREATE TABLE IF NOT EXISTS log(id INTEGER PRIMARY KEY, note TEXT); CREATE TABLE IF NOT EXISTS state(k INTEGER PRIMARY KEY, v TEXT);\n"
)

// told is what a VM was told is on stable storage.
type told struct{ committed, rolled, written int64 }

func (x *linux) told() told {
	return told{committed: x.committed.Load(), rolled: x.rolled.Load(), written: x.written.Load()}
}

// database commits transactions one after the other until ctx ends.
func (x *linux) database(ctx context.Context, file, mode string, committed *atomic.Int64) error {
	shell, err := rig.StartShell("sqlite3", "-batch", filepath.Join(x.sql.Dir, file))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shell.Close()) }()
	if answer, err := shell.Ask(mode + schema); err != nil || !strings.Contains(strings.ToLower(mode), "="+answer+";") {
		return fmt.Errorf("schema of %s: %q, %w", file, answer, err)
	}
	rng := x.env.rng(11)
	for id := int64(1); ctx.Err() == nil; id++ {
		answer, err := shell.Ask(transaction(rng, id))
		if err != nil {
			return fmt.Errorf("transaction %d of %s: %w", id, file, err)
		}
		if answer != strconv.FormatInt(id, 10) {
			return fmt.Errorf("transaction %d: %s answers %q", id, file, answer)
		}
		committed.Store(id)
	}
	return nil
}

func transaction(rng *rand.Rand, id int64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "BEGIN; INSERT INTO log VALUES(%d, 'note %d'); ", id, id)
	for range 1 + rng.IntN(8) {
		fmt.Fprintf(&b, "INSERT OR REPLACE INTO state VALUES(%d, hex(randomblob(%d))); ", rng.IntN(4000), 20+rng.IntN(2000))
	}
	b.WriteString("COMMIT; SELECT max(id) FROM log;\n")
	return b.String()
}

// check exports a point and judges both file systems. What was answered before the point was asked for must be in it.
func (x *linux) check(ctx context.Context, point string, before told) (err error) {
	if err := x.rig.Export(ctx, x.vm, point, x.scratch); err != nil {
		return err
	}
	sql := &rig.Loop{File: rig.Exported(x.scratch, "sql.raw"), Dir: filepath.Join(x.rig.Dir, "check")}
	tree := &rig.Loop{File: rig.Exported(x.scratch, "tree.vhd"), Dir: sql.Dir}
	var has told
	for _, l := range []*rig.Loop{sql, tree} {
		if err := l.Check(ctx); err != nil {
			return fmt.Errorf("point %s: %w", point, err)
		}
	}
	err = judged(ctx, sql, func(ctx context.Context, dir string) (err error) {
		if has.committed, err = checkDatabase(ctx, filepath.Join(dir, walFile)); err == nil {
			has.rolled, err = checkDatabase(ctx, filepath.Join(dir, rollbackFile))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("point %s: database: %w", point, err)
	}
	err = judged(ctx, tree, func(_ context.Context, dir string) (err error) {
		has.written, err = checkTree(dir, has.committed)
		return err
	})
	if err != nil {
		return fmt.Errorf("point %s: tree: %w", point, err)
	}
	if err := has.since(before); err != nil {
		return fmt.Errorf("point %s: %w", point, err)
	}
	return nil
}

// since wants all of what was told before a point was asked for.
func (has told) since(before told) error {
	for _, part := range []struct {
		what        string
		has, before int64
	}{{"transactions of " + walFile, has.committed, before.committed}, {"transactions of " + rollbackFile, has.rolled, before.rolled}, {"files of the tree", has.written, before.written}} {
		if part.has < part.before {
			return fmt.Errorf("%s end with %d, %d was on stable storage before the point was asked for", part.what, part.has, part.before)
		}
	}
	return nil
}

// judged mounts an exported file system and lets judge look.
func judged(ctx context.Context, l *rig.Loop, judge func(context.Context, string) error) (err error) {
	if err := l.Mount(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Unmount()) }()
	return judge(ctx, l.Dir)
}

// checkDatabase returns the newest transaction.
func checkDatabase(ctx context.Context, db string) (int64, error) {
	if _, err := os.Stat(db); errors.Is(err, os.ErrNotExist) {
		return 0, nil // a point from before the database
	}
	out, err := output(ctx, "sqlite3", "-batch", db, "PRAGMA integrity_check; "+
		"CREATE TABLE IF NOT EXISTS log(id INTEGER PRIMARY KEY, note TEXT); SELECT count(*), coalesce(max(id), 0) FROM log;")
	if err != nil {
		return 0, err
	}
	var rows, newest int64
	if n, _ := fmt.Sscanf(strings.ReplaceAll(out, "|", " "), "ok\n%d %d", &rows, &newest); n != 2 {
		return 0, fmt.Errorf("integrity check: %s", out)
	}
	if rows != newest {
		return 0, fmt.Errorf("%d transactions, the newest is %d", rows, newest)
	}
	return newest, nil
}
