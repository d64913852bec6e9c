package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	e2e "github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// stagePoints are the gaps of every stage: sealing, capture, ship, apply, initial
// replication.
var stagePoints = []string{
	journal.AfterPhaseSwitch, shipper.PointAfterSeal, shipper.PointBeforeManifest, shipper.PointAfterManifest, shipper.PointAfterTable,
	shipper.PointAfterUpload, shipper.PointBeforeRecord, shipper.PointAfterRecord, shipper.PointAfterCounted,
	shipper.PointBeforeApply, shipper.PointAfterPuts, shipper.PointBeforeSnapshot, shipper.PointAfterSnapshot, shipper.PointAfterBaseSnapshot,
}

// A SIGTERM in any gap of any stage is a clean stop: nothing is to compare
// afterwards, and nothing that was answered is lost. A SIGKILL loses nothing
// either, and costs the active regions at most.
func TestI4_SignalInEveryStage(t *testing.T) {
	for _, signal := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		for _, point := range stagePoints {
			t.Run(fmt.Sprint(signal, " ", point), func(t *testing.T) {
				t.Parallel()
				signalIn(t, point, signal)
			})
		}
	}
}

func signalIn(t *testing.T, point string, signal syscall.Signal) {
	r := newRig(t)
	content, fresh := r.content(8*mib), r.content(2*mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.stop()
	r.failpoint, r.signal = point, signal
	cmd := r.child()
	r.change("web/os.img", 5*mib, []byte("answered before the signal"))
	copy(content[5*mib:], "answered before the signal")
	r.must(os.WriteFile(r.path+armed, nil, 0o600))
	// Its initial replication passes the gaps that an epoch does not. It may end with the mount.
	_ = os.WriteFile(filepath.Join(r.mount, "web/new.img"), fresh, 0o600)
	ctx, cancel := context.WithTimeout(r.ctx(), timeout)
	defer cancel()
	// It may be answered before the signal: what counts is what is there afterwards.
	_, _ = r.client.Sync(ctx, "web", true, nil)
	err := r.waited(cmd)
	if (signal == unix.SIGTERM) != (err == nil) {
		t.Fatalf("the child ended with %v: %s", err, r.log.String())
	}
	r.must(os.Remove(r.path + armed))
	r.start()
	if v := r.vm("web"); signal == unix.SIGTERM && v.Recovery.SuspectBytes != 0 {
		t.Errorf("after a clean stop: %+v", v.Recovery)
	}
	r.write("web/new.img", fresh)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content, "new.img": fresh})
	r.equals("web", "latest", map[string][]byte{"os.img": content, "new.img": fresh})
	if err := r.client.JournalCheck(r.ctx()); err != nil {
		t.Error(err)
	}
}

// waited waits for the end of a child that a failpoint brings about.
func (r *rig) waited(cmd *exec.Cmd) error {
	r.t.Helper()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	defer unix.Unmount(r.mount, unix.MNT_DETACH)
	select {
	case err := <-done:
		return err
	case <-time.After(3 * timeout):
		_ = cmd.Process.Signal(unix.SIGQUIT) // shows where it hangs
		<-done
		r.t.Fatalf("the child does not end: %s", r.log.String())
	}
	return nil
}

// I9: the file system of the state directory is small and fills up under a guest's
// load. The guest sees no error, the spool keeps to its quota, and when there is
// space again every point is right.
func TestI9_SmallStateDiskUnderLoad(t *testing.T) {
	r := newRig(t)
	disk := &e2e.Loop{File: filepath.Join(t.TempDir(), "disk"), Dir: r.state}
	if err := errors.Join(disk.Format(t.Context(), 320*mib), disk.Mount(t.Context())); err != nil {
		t.Skip("needs mkfs.ext4 and a loop device: ", err)
	}
	t.Cleanup(func() { r.must(disk.Unmount()) })
	content := r.content(32 * mib)
	r.put("web/os.img", bytes.Clone(content))
	cmd := r.child()
	r.sync("web")
	guest, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer guest.Close()
	load := r.load(guest, content)
	free := r.fill(r.state)
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = r.client.Sync(short, "web", true, nil) // a point that is asked for may not come
	t.Logf("sync on a full disk: %v", err)
	v := r.await("web", "a reason", func(v control.VM) bool {
		return hasMessage(v, "disk-full", "", r.state, "free space on the file system named in the error") || hasReason("journal-failing")(v) ||
			hasMessage(v, "state-disk-full", "", r.state, "free space on the file system of "+r.state)
	})
	if v.SpooledBytes > 160*mib {
		t.Errorf("the spool has %d bytes of a disk of 320 MiB", v.SpooledBytes)
	}
	free()
	load.stop(t)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.await("web", "health", func(v control.VM) bool { return v.State == string(lifecycle.Replicating) && len(v.Reasons) == 0 })
	r.must(guest.Close())
	r.must(cmd.Process.Signal(unix.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("stop: %v\n%s", err, r.log.String())
	}
}

// I9: the kernel finds an error in the state directory's file system and lets nobody
// write to it any more. Guests go on, the status says so, and when it is mounted
// again everything written meanwhile is found and shipped.
func TestI9_StateDiskTurnsReadOnly(t *testing.T) {
	r := newRig(t)
	disk := &e2e.Loop{File: filepath.Join(t.TempDir(), "disk"), Dir: r.state}
	if err := errors.Join(disk.Format(t.Context(), 320*mib), disk.Mount(t.Context())); err != nil {
		t.Skip("needs mkfs.ext4 and a loop device: ", err)
	}
	t.Cleanup(func() { r.must(disk.Unmount()) })
	content := r.content(32 * mib)
	r.put("web/os.img", bytes.Clone(content))
	cmd := r.child()
	r.sync("web")
	guest, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer guest.Close()
	if err := unix.Mount("", r.state, "", unix.MS_REMOUNT, "abort"); err != nil {
		t.Skip("this kernel cannot make an error of ext4: ", err)
	}
	load := r.load(guest, content)
	v := r.await("web", "a reason", hasReason("journal-failing"))
	if !hasMessage(v, "journal-failing", "changes are marked on the images instead of the journal", "", "look at the disk of the state directory") {
		t.Errorf("%+v", v.Reasons)
	}
	_, err = r.client.Sync(r.ctx(), "web", true, nil)
	if e := (*control.Error)(nil); !errors.As(err, &e) || e.Code != "read-only" || !strings.Contains(e.Message, r.state) || !strings.Contains(e.Action, "mount the file system writable") {
		t.Errorf("sync on a read-only disk: %v", err)
	}
	load.stop(t)
	r.must(guest.Close())
	r.must(cmd.Process.Signal(unix.SIGTERM))
	t.Logf("stop: %v", r.waited(cmd)) // it may say that it could not write
	r.must(disk.Unmount())
	r.must(disk.Mount(t.Context()))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.await("web", "health", func(v control.VM) bool { return v.State == string(lifecycle.Replicating) && len(v.Reasons) == 0 })
	r.stop()
}

// guestLoad writes to a file until it is stopped, and to its copy in memory.
type guestLoad struct {
	end  chan struct{}
	wait sync.WaitGroup
	err  error
	n    atomic.Int64 // writes
}

func (r *rig) load(f *os.File, content []byte) *guestLoad {
	l := &guestLoad{end: make(chan struct{})}
	l.wait.Go(func() {
		for ; l.err == nil; l.n.Add(1) {
			select {
			case <-l.end:
				return
			default:
			}
			off := int64(r.rand.Uint64() % uint64(len(content)-8192))
			p := content[off : off+8192]
			p[0]++
			_, l.err = f.WriteAt(p, off)
		}
	})
	return l
}

func (l *guestLoad) stop(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); l.n.Load() < 1000 && time.Since(began) < timeout; {
		<-tick.C
	}
	close(l.end)
	l.wait.Wait()
	if l.err != nil || l.n.Load() < 1000 {
		t.Errorf("after %d writes the guest saw: %v", l.n.Load(), l.err)
	}
	t.Logf("%d writes", l.n.Load())
}
