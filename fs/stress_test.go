package fs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

// TestNamesUnderContention: many names come, go and change places at once, under writes. Afterwards the mount shows
// what the source holds, and no byte was missed.
func TestNamesUnderContention(t *testing.T) {
	m := newTestStore(t)
	if err := errors.Join(os.Mkdir(m.path("0"), 0o755), os.Mkdir(m.path("1"), 0o755)); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var workers sync.WaitGroup
	for w := range uint64(4) {
		workers.Go(func() { churn(t, m, rand.New(rand.NewPCG(seed, w))) })
	}
	workers.Wait()
	for _, dir := range []string{"0", "1"} {
		entries, err := os.ReadDir(m.path(dir))
		backing, err2 := os.ReadDir(m.backing(dir))
		if err != nil || err2 != nil || len(entries) != len(backing) {
			t.Errorf("%d names at the mount, %d in the source, %v, %v", len(entries), len(backing), err, err2)
		}
	}
}

func churn(t *testing.T, m *testStore, rng *rand.Rand) {
	name := func() string {
		return m.path(fmt.Sprintf("%d/%d.%s", rng.IntN(2), rng.IntN(6), []string{"vhd", "tmp"}[rng.IntN(2)]))
	}
	for range 250 {
		var err error
		switch rng.IntN(6) {
		case 0:
			err = os.WriteFile(name(), make([]byte, 100+rng.IntN(5000)), 0o644)
		case 1:
			err = os.Rename(name(), name())
		case 2:
			err = unix.Renameat2(unix.AT_FDCWD, name(), unix.AT_FDCWD, name(), unix.RENAME_EXCHANGE)
		case 3:
			err = os.Remove(name())
		case 4:
			err = os.Truncate(name(), rng.Int64N(9000))
		case 5:
			_, err = os.ReadDir(m.path(fmt.Sprint(rng.IntN(2))))
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
	}
}

// TestDetachLeavesOpenFilesAlive: after Detach a file goes on until its close, and then the server ends.
func TestDetachLeavesOpenFilesAlive(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("a.vhd"), os.O_RDWR|os.O_CREATE)
	if err := m.srv.Detach(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("late"), 0); err != nil {
		t.Errorf("write after the detach: %v", err)
	}
	m.vols.recorder(t, "a.vhd").wantChanges(t, extent.Change{Kind: extent.Write, Len: 4})
	f.Close()
	m.srv.Wait()
	if err := m.srv.Unmount(); err != nil {
		t.Errorf("unmount after the end: %v", err)
	}
}

// bareStore is a store without a mount, with one open disk.
func bareStore(t testing.TB, v Volumes) (*store, fuse.InHeader) {
	t.Helper()
	src := t.TempDir()
	mustWrite(t, src+"/a.vhd", make([]byte, 1<<20))
	s, err := newStore(src, v, discardLog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.OnUnmount)
	var entry fuse.EntryOut
	if st := s.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "a.vhd", &entry); st != fuse.OK {
		t.Fatal(st)
	}
	in := fuse.InHeader{NodeId: entry.NodeId}
	var out fuse.OpenOut
	if st := s.Open(nil, &fuse.OpenIn{InHeader: in, Flags: unix.O_RDWR}, &out); st != fuse.OK {
		t.Fatal(st)
	}
	if out.Fh != 0 || out.OpenFlags != fuse.FOPEN_DIRECT_IO|fuse.FOPEN_PARALLEL_DIRECT_WRITES {
		t.Errorf("open: %+v", out)
	}
	return s, in
}

// passTracker agrees to everything.
type passTracker struct{}

func (p *passTracker) Begin(extent.Change) (extent.Pass, error) { return p, nil }
func (p *passTracker) End(extent.Change, extent.Pass, error)    {}
func (p *passTracker) Attach(string, Identity) Tracker          { return p }
func (p *passTracker) Renamed(string, string, Identity)         {}
func (p *passTracker) Removed(string, Identity)                 {}
func (p *passTracker) Closed(string, Identity)                  {}

// TestHotPathAllocatesNothing: reads and plain writes of a tracked disk.
func TestHotPathAllocatesNothing(t *testing.T) {
	s, in := bareStore(t, &passTracker{})
	buf := make([]byte, 4096)
	iov := [][]byte{buf}
	write := &fuse.WriteIn{InHeader: in, Offset: 8192, Size: 4096}
	read := &fuse.ReadIn{InHeader: in, Offset: 8192, Size: 4096}
	if n := testing.AllocsPerRun(100, func() { s.Writev(nil, write, iov) }); n != 0 {
		t.Errorf("a write allocates %v times", n)
	}
	n := testing.AllocsPerRun(100, func() {
		r, _ := s.Read(nil, read, buf)
		r.Done()
	})
	if n != 0 {
		t.Errorf("a read allocates %v times", n)
	}
}

// TestForgetEndsTheNode: with its last lookup the number means nothing any more.
func TestForgetEndsTheNode(t *testing.T) {
	s, in := bareStore(t, &passTracker{})
	var entry fuse.EntryOut
	if st := s.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "a.vhd", &entry); st != fuse.OK || entry.NodeId != in.NodeId {
		t.Fatal(st)
	}
	s.Release(nil, &fuse.ReleaseIn{InHeader: in})
	s.Forget(in.NodeId, 1)
	var attr fuse.AttrOut
	if st := s.GetAttr(nil, &fuse.GetAttrIn{InHeader: in}, &attr); st != fuse.OK {
		t.Errorf("one lookup is left: %v", st)
	}
	s.Forget(in.NodeId, 1)
	if st := s.GetAttr(nil, &fuse.GetAttrIn{InHeader: in}, &attr); st != fuse.Status(unix.ESTALE) {
		t.Errorf("forgotten: %v", st)
	}
	s.Forget(in.NodeId, 1)
	s.Forget(fuse.FUSE_ROOT_ID, 100)
	if s.tree.get(fuse.FUSE_ROOT_ID) == nil {
		t.Error("the root was forgotten")
	}
}

// TestFailedSyncIsSticky: the second fsync does not hide what the first one reported.
func TestFailedSyncIsSticky(t *testing.T) {
	s, in := bareStore(t, nil)
	n := s.tree.get(in.NodeId)
	good := n.wr.Swap(int32(n.fd)) // fsync of an O_PATH descriptor fails
	if st := s.Fsync(nil, &fuse.FsyncIn{InHeader: in}); st != fuse.EBADF {
		t.Fatalf("fsync: %v", st)
	}
	n.wr.Store(good)
	if st := s.Fsync(nil, &fuse.FsyncIn{InHeader: in, FsyncFlags: 1}); st != fuse.EBADF {
		t.Errorf("the failure is forgotten: %v", st)
	}
	s.Release(nil, &fuse.ReleaseIn{InHeader: in})
	if st := s.Open(nil, &fuse.OpenIn{InHeader: in, Flags: unix.O_RDWR}, new(fuse.OpenOut)); st != fuse.OK {
		t.Fatal(st)
	}
	if st := s.Fsync(nil, &fuse.FsyncIn{InHeader: in}); st != fuse.OK {
		t.Errorf("after the last close: %v", st)
	}
}

// TestTruncateByPathUsesNoSharedDescriptor: the last release may have closed it, and its number may mean another file.
func TestTruncateByPathUsesNoSharedDescriptor(t *testing.T) {
	s, in := bareStore(t, nil)
	n := s.tree.get(in.NodeId)
	other := open(t, t.TempDir()+"/other", os.O_RDWR|os.O_CREATE)
	if err := other.Truncate(100); err != nil {
		t.Fatal(err)
	}
	ours := n.wr.Swap(int32(other.Fd()))
	set := &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: in, Valid: fuse.FATTR_SIZE, Size: 7}}
	var out fuse.AttrOut
	if st := s.SetAttr(nil, set, &out); st != fuse.OK || out.Size != 7 {
		t.Errorf("%v, size %d", st, out.Size)
	}
	n.wr.Store(ours)
	if st, err := other.Stat(); err != nil || st.Size() != 100 {
		t.Errorf("another file was truncated: %v, %v", st.Size(), err)
	}
}
