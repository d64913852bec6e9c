package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDeedsAreDoneOnce kills the process in each gap of every request that changes a name: who asked for it sees that it
// happened, once.
func TestDeedsAreDoneOnce(t *testing.T) {
	for _, point := range []string{PointBefore, PointDone, PointNoted} {
		t.Run(point, func(t *testing.T) {
			t.Setenv(dieEnv, point)
			k := newKeeper(t)
			k.start()
			deaths := k.carry(startWriter(t, "names", k.mnt))
			if deaths < 10 {
				t.Errorf("only %d processes died", deaths)
			}
			if point != PointDone { // there the next process remembers an open too many rather than one too few
				k.settles()
			}
			for name, want := range map[string]bool{"a.raw": false, "b.raw": true, "linked": true, "note": true, "dir": false, "sym": true, "old": false, "new": true} {
				if _, err := os.Lstat(filepath.Join(k.src, name)); (err == nil) != want {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// carry starts a process whenever one has died, until the writer ends.
func (k *keeper) carry(w *writer) (deaths int) {
	k.t.Helper()
	late := time.After(3 * time.Minute)
	for {
		died := make(chan struct{})
		go func() { k.child.Wait(); close(died) }()
		select {
		case err := <-w.ended:
			k.child.Process.Kill()
			<-died
			k.child = nil
			if err != nil {
				k.t.Error(err)
			}
			return deaths
		case <-died:
			deaths++
			k.start()
		case <-late:
			k.t.Error("the writer does not end")
			return deaths
		}
	}
}

// settles looks at what the last process left: the kernel has forgotten what nobody uses, or nobody knows it any more.
func (k *keeper) settles() {
	k.t.Helper()
	names, err := filepath.Glob(filepath.Join(k.src, hiddenPrefix+"*"))
	if err != nil || len(names) > 0 {
		k.t.Errorf("hidden names are left: %v, %v", names, err)
	}
}

// childNames does everything once that must not be done twice, and sees what it did.
func childNames(args []string) error {
	at := func(name string) string { return filepath.Join(args[0], name) }
	create := func(name string) error {
		fd, err := unix.Open(at(name), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
		if err != nil {
			return fmt.Errorf("create %s: %w", name, err)
		}
		_, err = unix.Write(fd, []byte(name))
		return errors.Join(err, unix.Close(fd))
	}
	must := func(what string, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	for _, step := range []func() error{
		func() error { return create("a.raw") },
		func() error { return create("note") },
		func() error { return create("old") },
		func() error { return must("rename", unix.Rename(at("old"), at("new"))) },
		func() error { return must("rename a disk", unix.Rename(at("a.raw"), at("b.raw"))) },
		func() error { return must("link", unix.Link(at("note"), at("linked"))) },
		func() error { return must("mkdir", unix.Mkdir(at("dir"), 0o750)) },
		func() error { return must("rmdir", unix.Rmdir(at("dir"))) },
		func() error { return must("symlink", unix.Symlink("note", at("sym"))) },
		func() error { return create("gone") },
		func() error { return must("unlink", unix.Unlink(at("gone"))) },
		func() error {
			return must("setxattr", unix.Setxattr(at("note"), "user.x", []byte("1"), unix.XATTR_CREATE))
		},
		func() error { return must("removexattr", unix.Removexattr(at("note"), "user.x")) },
		func() error {
			if err := create("note"); !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("what is there is created: %w", err)
			}
			return nil
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// killedUnderHolder kills the process twice while somebody has files open that lost their names; between comes before the next
// process takes the mount over.
func (k *keeper) killedUnderHolder(between func()) {
	k.t.Helper()
	k.image("a.raw", 1<<20)
	k.image("b.raw", 1<<20)
	k.start()
	w := startWriter(k.t, "holder", k.mnt, k.src)
	for range 2 {
		k.awaitFile("held")
		os.Remove(filepath.Join(k.src, "held"))
		k.kill()
		between()
		k.start()
		if err := os.WriteFile(filepath.Join(k.src, "next"), nil, 0o600); err != nil {
			k.t.Fatal(err)
		}
	}
	w.finish()
}

// TestRemovedFilesGoOn: a file that is open and has lost its name is there for the next process, and gone when it is closed.
func TestRemovedFilesGoOn(t *testing.T) {
	k := newKeeper(t)
	k.killedUnderHolder(func() {})
	for late := time.Now().Add(20 * time.Second); ; {
		names, err := filepath.Glob(filepath.Join(k.src, hiddenPrefix+"*"))
		if err == nil && len(names) == 0 {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("left: %v, %v", names, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (k *keeper) awaitFile(name string) {
	k.t.Helper()
	for late := time.Now().Add(20 * time.Second); ; <-time.After(2 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(k.src, name)); err == nil {
			return
		}
		if time.Now().After(late) {
			k.t.Fatalf("%s does not come", name)
		}
	}
}

// childHolder holds a file that is removed, and one that another is renamed over, beyond two ends of the process that
// serves. It tells of its progress beside the mount.
func childHolder(args []string) error {
	mnt, src := args[0], args[1]
	f, err := os.OpenFile(filepath.Join(mnt, "a.raw"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := os.OpenFile(filepath.Join(mnt, "b.raw"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer g.Close()
	if err := os.Remove(filepath.Join(mnt, "a.raw")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(mnt, "over"), []byte("over"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(mnt, "over"), filepath.Join(mnt, "b.raw")); err != nil {
		return err
	}
	for i := range 2 {
		text := fmt.Sprintf("life %d", i)
		for _, h := range []*os.File{f, g} {
			if _, err := h.WriteAt([]byte(text), int64(i)*4096); err != nil {
				return fmt.Errorf("write %d: %w", i, err)
			}
		}
		if err := os.WriteFile(filepath.Join(src, "held"), nil, 0o600); err != nil {
			return err
		}
		for {
			if os.Remove(filepath.Join(src, "next")) == nil {
				break
			}
			<-time.After(2 * time.Millisecond)
		}
		for _, h := range []*os.File{f, g} {
			back := make([]byte, len(text))
			if _, err := h.ReadAt(back, int64(i)*4096); err != nil || string(back) != text {
				return fmt.Errorf("%q is read after a handover, %w", back, err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(h.Fd()), &st); err != nil || st.Nlink != 0 {
				return fmt.Errorf("%d names, %w", st.Nlink, err)
			}
		}
		entries, err := os.ReadDir(mnt)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if n := e.Name(); n != "b.raw" && n != "held" && n != "next" {
				return fmt.Errorf("%s is seen", n)
			}
		}
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
