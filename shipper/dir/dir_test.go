package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const idA = "aaaaaaaa-0000-4000-8000-000000000001"

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func put(d *Dir, name string, off int64, value byte, g target.Guard) error {
	data := bytes.Repeat([]byte{value}, 4096)
	return d.PutPages(context.Background(), name, off, data, checksum.Of(data), g)
}

func reopen(t *testing.T, d *Dir) *Dir {
	t.Helper()
	again, err := Open(d.path, Options{})
	ok(t, err)
	t.Cleanup(func() { ok(t, again.Close()) })
	return again
}

func list(t *testing.T, d *Dir, prefix string) (names []string) {
	t.Helper()
	for item, err := range d.List(t.Context(), prefix) {
		ok(t, err)
		names = append(names, item.Name)
	}
	return names
}

// TestOpenUnmounted: neither a missing directory nor an empty mount point is an
// empty target.
func TestOpenUnmounted(t *testing.T) {
	empty := t.TempDir()
	for _, path := range []string{filepath.Join(empty, "none"), empty} {
		_, err := Open(path, Options{})
		is(t, err, target.ErrNoContainer)
		if errors.Is(err, target.ErrNotFound) {
			t.Errorf("%v reads as an empty target", err)
		}
	}
	if entries, _ := os.ReadDir(empty); len(entries) != 0 {
		t.Errorf("left %v behind", entries)
	}
	d, err := Open(filepath.Join(empty, "new"), Options{Create: true})
	ok(t, err)
	ok(t, d.Close())
	d, err = Open(filepath.Join(empty, "new"), Options{})
	ok(t, err)
	if got := list(t, d, ""); len(got) != 0 {
		t.Errorf("a new target holds %v", got)
	}
	ok(t, d.Close())
}

// TestRootRemoved: a target removed below us is not an empty one.
func TestRootRemoved(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, os.RemoveAll(d.path))
	_, err := d.Get(t.Context(), "vm/vm.json")
	is(t, err, target.ErrNoContainer)
	for _, err := range d.List(t.Context(), "") {
		is(t, err, target.ErrNoContainer)
	}
}

func TestOpenOtherVersion(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, os.WriteFile(filepath.Join(d.path, formatFile), []byte("vhdrelay directory target 2\n"), 0o600))
	_, err := Open(d.path, Options{Create: true})
	is(t, err, target.ErrVersion)
}

// TestOpenCopied: a target copied without its own directory can be read.
func TestOpenCopied(t *testing.T) {
	d := newDir(t, Options{})
	_, err := d.Create(t.Context(), "vm/vm.json", []byte("x"))
	ok(t, err)
	ok(t, os.RemoveAll(filepath.Join(d.path, ownDir)))
	o, err := reopen(t, d).Get(t.Context(), "vm/vm.json")
	ok(t, err)
	if string(o.Data) != "x" {
		t.Errorf("read %q", o.Data)
	}
}

func TestSweep(t *testing.T) {
	d := newDir(t, Options{})
	temp := filepath.Join(d.path, tempDir)
	for name, age := range map[string]time.Duration{"old": sweepAfter + time.Hour, "new": time.Hour} {
		ok(t, os.WriteFile(filepath.Join(temp, name), nil, 0o600))
		at := time.Now().Add(-age)
		ok(t, os.Chtimes(filepath.Join(temp, name), at, at))
	}
	again, err := Open(d.path, Options{Create: true})
	ok(t, err)
	ok(t, again.Close())
	for name, left := range map[string]bool{"old": false, "new": true} {
		if _, err := os.Stat(filepath.Join(temp, name)); (err == nil) != left {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a process was making that was killed goes at the next writer's Open; what somebody makes now stays, whatever it is.
func TestSweepOfTheDead(t *testing.T) {
	dead := newDir(t, Options{})
	alive, err := Open(dead.path, Options{})
	ok(t, err)
	reader, err := Open(dead.path, Options{})
	ok(t, err)
	temps := map[*Dir]string{}
	for _, d := range []*Dir{dead, alive, reader} {
		for range 2 {
			f, temp, err := d.createTemp()
			ok(t, err)
			ok(t, f.Close())
			temps[d] = temp
		}
	}
	there := func() (n int) {
		entries, err := os.ReadDir(filepath.Join(dead.path, tempDir))
		ok(t, err)
		return len(entries)
	}
	open := func() {
		again, err := Open(dead.path, Options{Create: true})
		ok(t, err)
		ok(t, again.Close())
	}
	if open(); there() != 9 {
		t.Fatalf("%d files are there, of three that live", there())
	}
	dead.owner.unlock() // as the kernel does when a process ends
	if open(); there() != 6 {
		t.Fatalf("%d files are there, of two that live", there())
	}
	for _, d := range []*Dir{alive, reader} {
		_, err := os.Stat(filepath.Join(dead.path, temps[d]))
		ok(t, err)
	}
	ok(t, alive.Close())
	if open(); there() != 5 {
		t.Fatalf("%d files are there: what an ended process left has no lock, and is young", there())
	}
}

func TestPath(t *testing.T) {
	for url, want := range map[string]string{
		"dir:///mnt/nas/replicas":  "/mnt/nas/replicas",
		"dir:///mnt/nas/replicas/": "/mnt/nas/replicas",
		"dir:///mnt/a%20b":         "/mnt/a b",
		"dir://host/x":             "",
		"dir:relative":             "",
		"https://x/y":              "",
		"dir://":                   "",
		"%":                        "",
	} {
		got, err := Path(url)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", url, got, err)
		}
	}
	d := newDir(t, Options{})
	if back, err := Path(d.String()); err != nil || back != d.path {
		t.Errorf("%s leads to %q, %v", d, back, err)
	}
}

// TestHostileNames: whatever the name, nothing outside the root is read or made.
func TestHostileNames(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	ok(t, os.WriteFile(secret, []byte("secret"), 0o600))
	d := newDir(t, Options{})
	ok(t, os.Symlink(outside, filepath.Join(d.path, "link")))
	ok(t, os.Symlink(secret, filepath.Join(d.path, "direct")))
	ok(t, unix.Mkfifo(filepath.Join(d.path, "fifo"), 0o600))
	for _, name := range []string{"link/secret", "direct", "link/new", "fifo", "../" + filepath.Base(outside) + "/secret", secret,
		ownDir + "/format", sideDir + "/x/state.json", "vm/" + reserved, "vm/x" + partSuffix} {
		if o, err := d.Get(t.Context(), name); err == nil {
			t.Errorf("%s: read %q", name, o.Data)
		}
		if _, err := d.Create(t.Context(), name, []byte("x")); err == nil {
			t.Errorf("%s: created", name)
		}
		if err := d.CreatePages(t.Context(), name, 4096, 0); err == nil {
			t.Errorf("%s: pages created", name)
		}
		if name != "direct" && name != "fifo" { // names of ours, whoever made them
			_ = d.Delete(t.Context(), name) // refused or nothing there
		}
	}
	for _, id := range []string{"../../secret", "x/../../../secret", "..", secret} {
		_, err := d.Properties(t.Context(), "vm/b", id)
		is(t, err, target.ErrNotFound)
		ok(t, d.DeleteSnapshot(t.Context(), "vm/b", id))
	}
	entries, err := os.ReadDir(outside)
	ok(t, err)
	if content, err := os.ReadFile(secret); err != nil || string(content) != "secret" || len(entries) != 1 {
		t.Errorf("outside: %v, %q, %v", entries, content, err)
	}
	if got := list(t, d, ""); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
}

// TestLongNames: elements longer than NAME_MAX come back, and a prefix may end
// anywhere within one.
func TestLongNames(t *testing.T) {
	d := newDir(t, Options{})
	var want []string
	for _, n := range []int{partLen - 1, partLen, partLen + 1, 2 * partLen, 2*partLen + 1, 900} {
		name := "vm/" + strings.Repeat("é"[:2], n/2) + strings.Repeat("x", n%2) + "/replica.vhd"
		ok(t, d.CreatePages(t.Context(), name, 4096, 0))
		ok(t, put(d, name, 0, byte(n), target.Unguarded))
		want = append(want, name)
	}
	got := list(t, d, "vm/")
	if len(got) != len(want) {
		t.Fatalf("listed %d of %d", len(got), len(want))
	}
	for _, name := range want {
		for _, cut := range []int{len(name), len(name) - 3, 150, 203, 204} {
			if cut <= len(name) && !contains(list(t, d, name[:cut]), name) {
				t.Errorf("%d bytes of the name do not find it", cut)
			}
		}
		ok(t, d.DeletePages(t.Context(), name, ""))
	}
	if got := list(t, d, ""); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

func contains(names []string, want string) bool {
	for _, n := range names {
		if n == want {
			return true
		}
	}
	return false
}

// TestTwoProcesses: two Dirs over one directory, as two machines have it, fence
// each other and see each other's changes.
func TestTwoProcesses(t *testing.T) {
	old := newDir(t, Options{})
	ok(t, old.CreatePages(t.Context(), "vm/b", 1<<20, 0))
	ok(t, old.AcquireLease(t.Context(), "vm/b", idA))
	mine := target.Guard{Lease: idA, Sequence: 0}
	ok(t, put(old, "vm/b", 0, 1, mine))
	taker := reopen(t, old)
	is(t, put(taker, "vm/b", 0, 2, target.Unguarded), target.ErrLeased)
	before, err := taker.Properties(t.Context(), "vm/b", "")
	ok(t, err)
	ok(t, put(old, "vm/b", 0, 3, mine))
	ok(t, taker.BreakLease(t.Context(), "vm/b"))
	is(t, put(old, "vm/b", 0, 4, mine), target.ErrLeaseLost)
	_, err = taker.SetSequence(t.Context(), "vm/b", 5, "", "")
	ok(t, err)
	ok(t, old.AcquireLease(t.Context(), "vm/b", idA))
	is(t, put(old, "vm/b", 0, 4, mine), target.ErrSequence)
	after, err := old.Properties(t.Context(), "vm/b", "")
	ok(t, err)
	if before.ETag == after.ETag {
		t.Error("the etag did not change")
	}
	id, err := old.Snapshot(t.Context(), "vm/b", idA, after.ETag, map[string]string{"epoch": "1"})
	ok(t, err)
	list, err := taker.Snapshots(t.Context(), "vm/b")
	ok(t, err)
	if len(list) != 1 || list[0].ID != id || list[0].Metadata["epoch"] != "1" {
		t.Errorf("the other sees %+v", list)
	}
}

// TestLockWaitEndsWithContext: another machine holds the blob.
func TestLockWaitEndsWithContext(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, d.CreatePages(t.Context(), "vm/b", 4096, 0))
	unlock, err := d.lock(t.Context(), lockPath("vm/b"), true, false)
	ok(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	data := make([]byte, 512)
	err = d.PutPages(ctx, "vm/b", 0, data, checksum.Of(data), target.Unguarded)
	is(t, err, context.DeadlineExceeded)
	if target.OutcomeOf(err) != target.Known {
		t.Errorf("it never got to the blob, but: %v", err)
	}
}

// TestSnapshotIDsNeverReused: not after the newest was deleted, and not when the
// clock goes back.
func TestSnapshotIDsNeverReused(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := newDir(t, Options{Now: func() time.Time { return now }})
	ok(t, d.CreatePages(t.Context(), "vm/b", 4096, 0))
	last := ""
	for range 5 {
		id, err := d.Snapshot(t.Context(), "vm/b", "", "", nil)
		ok(t, err)
		if id <= last {
			t.Fatalf("%s after %s", id, last)
		}
		last = id
		ok(t, d.DeleteSnapshot(t.Context(), "vm/b", id))
		now = now.Add(-time.Minute)
	}
}

// TestSnapshotStaysSparse: 1 GiB with 8 KiB of data takes next to nothing, copied
// or cloned.
func TestSnapshotStaysSparse(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, d.CreatePages(t.Context(), "vm/b", 1<<30, 0))
	ok(t, put(d, "vm/b", 512<<20, 1, target.Unguarded))
	ok(t, put(d, "vm/b", 1<<30-4096, 2, target.Unguarded))
	id, err := d.Snapshot(t.Context(), "vm/b", "", "", nil)
	ok(t, err)
	data, err := snapshotPath("vm/b", id)
	ok(t, err)
	for _, rel := range []string{"vm/b", data} {
		var st unix.Stat_t
		ok(t, unix.Stat(filepath.Join(d.path, rel), &st))
		if st.Size != 1<<30 || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: %d bytes, %d allocated", rel, st.Size, st.Blocks*512)
		}
	}
	if yes, err := d.Reflinks(); err != nil {
		t.Errorf("reflinks %v, %v", yes, err)
	}
}

// TestClearFreesSpace: punched, not written.
func TestClearFreesSpace(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, d.CreatePages(t.Context(), "vm/b", 8<<20, 0))
	big := bytes.Repeat([]byte{1}, target.MaxPut)
	ok(t, d.PutPages(t.Context(), "vm/b", 0, big, checksum.Of(big), target.Unguarded))
	ok(t, d.ClearPages(t.Context(), "vm/b", 0, 8<<20, target.Unguarded))
	var st unix.Stat_t
	ok(t, unix.Stat(filepath.Join(d.path, "vm/b"), &st))
	if st.Blocks*512 > 64<<10 {
		t.Errorf("%d bytes allocated after a clear", st.Blocks*512)
	}
}

// TestFallbacks: what is done where the file system lacks punching, RWF_DSYNC or
// reflinks gives the same bytes.
func TestFallbacks(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	ok(t, err)
	defer f.Close()
	ok(t, writeAndSync(f, bytes.Repeat([]byte{1}, 3<<20), 512))
	ok(t, writeZeros(t.Context(), f, 1024, 2<<20+512))
	got, err := os.ReadFile(f.Name())
	ok(t, err)
	want := append(make([]byte, 512), bytes.Repeat([]byte{1}, 3<<20)...)
	clear(want[1024 : 1024+2<<20+512])
	if !bytes.Equal(got, want) {
		t.Error("zeros went elsewhere")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	is(t, writeZeros(ctx, f, 0, 512), context.Canceled)
	is(t, sparseCopy(ctx, f, f, 512), context.Canceled)
}

// TestDamagedState: said, not guessed, and not taken for absence.
func TestDamagedState(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, d.CreatePages(t.Context(), "vm/b", 4096, 0))
	state := filepath.Join(d.path, statePath("vm/b"))
	for content, want := range map[string]error{"{": target.ErrDamaged, `{"version":2}`: target.ErrVersion} {
		ok(t, os.WriteFile(state, []byte(content), 0o600))
		is(t, put(d, "vm/b", 0, 1, target.Unguarded), want)
		_, err := d.Properties(t.Context(), "vm/b", "")
		is(t, err, want)
	}
}

// TestIdleBlobsAreDropped: memory does not grow with every segment ever written.
func TestIdleBlobsAreDropped(t *testing.T) {
	d := newDir(t, Options{})
	for i := range 3 * keepBlobs {
		d.leave(d.enter(fmt.Sprint(i)))
	}
	if n := len(d.mu.blobs); n > keepBlobs {
		t.Errorf("%d entries kept", n)
	}
}

// TestETagNeedsNoClock: the counter grows before the first change after an ETag
// was given out, and only then; file times may be too coarse to tell.
func TestETagNeedsNoClock(t *testing.T) {
	d := newDir(t, Options{})
	changes := func() uint64 {
		t.Helper()
		s, err := d.readState("vm/b")
		ok(t, err)
		return s.Changes
	}
	ok(t, d.CreatePages(t.Context(), "vm/b", 64<<10, 0))
	ok(t, put(d, "vm/b", 0, 1, target.Unguarded))
	if n := changes(); n != 0 {
		t.Errorf("%d state files written although nobody saw an etag", n)
	}
	for want := uint64(1); want < 4; want++ {
		_, err := d.Properties(t.Context(), "vm/b", "")
		ok(t, err)
		ok(t, put(d, "vm/b", 0, 1, target.Unguarded))
		ok(t, put(d, "vm/b", 0, 1, target.Unguarded))
		if n := changes(); n != want {
			t.Errorf("counter %d, want %d", n, want)
		}
	}
	_, err := d.SetSequence(t.Context(), "vm/b", 1, "", "")
	ok(t, err)
	before := changes()
	ok(t, d.ClearPages(t.Context(), "vm/b", 0, 512, target.Unguarded))
	if changes() != before+1 {
		t.Error("a clear after the number was set has the same etag")
	}
}

// TestRemovedBehindOurBack: directories this process has made are made again.
func TestRemovedBehindOurBack(t *testing.T) {
	d := newDir(t, Options{})
	for range 2 {
		_, err := d.Create(t.Context(), "vm/points/1-1.json", nil)
		ok(t, err)
		ok(t, d.CreatePages(t.Context(), "vm/disk/log/1-1", 512, 0))
		ok(t, os.RemoveAll(filepath.Join(d.path, "vm")))
	}
}

// TestLockOfRemovedFile: a lock on a file that was removed while we waited for it
// locks nothing, and is not taken for one.
func TestLockOfRemovedFile(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, d.CreatePages(t.Context(), "vm/b", 512, 0))
	f, err := d.root.Open(lockPath("vm/b"))
	ok(t, err)
	defer f.Close()
	if !d.isStill(lockPath("vm/b"), f) {
		t.Fatal("the lock file is the lock file")
	}
	ok(t, d.DeletePages(t.Context(), "vm/b", ""))
	if d.isStill(lockPath("vm/b"), f) {
		t.Fatal("removed")
	}
	ok(t, d.CreatePages(t.Context(), "vm/b", 512, 0))
	if d.isStill(lockPath("vm/b"), f) {
		t.Fatal("another file of the same name")
	}
}

// TestDirectoriesAreForgotten: memory does not grow with every segment deleted.
func TestDirectoriesAreForgotten(t *testing.T) {
	d := newDir(t, Options{})
	for i := range 20 {
		name := fmt.Sprintf("vm/disk/log/1-%d", i)
		ok(t, d.CreatePages(t.Context(), name, 512, 0))
		ok(t, d.DeletePages(t.Context(), name, ""))
	}
	if n := len(d.mu.durable); n > 10 {
		t.Errorf("%d directories remembered", n)
	}
}

// TestConcurrentPutsAndSnapshots: a snapshot is one moment of every put: each
// block in it is whole.
func TestConcurrentPutsAndSnapshots(t *testing.T) {
	d := newDir(t, Options{})
	const blocks = 8
	ok(t, d.CreatePages(t.Context(), "vm/b", blocks*4096, 0))
	var wg sync.WaitGroup
	errs := make([]error, blocks)
	for i := range blocks {
		wg.Go(func() {
			for v := byte(1); v < 10 && errs[i] == nil; v++ {
				errs[i] = put(d, "vm/b", int64(i)*4096, v, target.Unguarded)
			}
		})
	}
	var ids []string
	for range 5 {
		id, err := d.Snapshot(t.Context(), "vm/b", "", "", nil)
		ok(t, err)
		ids = append(ids, id)
	}
	wg.Wait()
	ok(t, errors.Join(errs...))
	p := make([]byte, blocks*4096)
	for _, id := range ids {
		ok(t, d.ReadPages(t.Context(), "vm/b", id, 0, p))
		for i := range blocks {
			block := p[i*4096 : (i+1)*4096]
			if !bytes.Equal(block, bytes.Repeat(block[:1], 4096)) {
				t.Fatalf("block %d of snapshot %s is torn", i, id)
			}
		}
	}
}
