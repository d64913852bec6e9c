package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv/badgerkv"
)

// childEnv makes the test binary a writer on Badger and a real image that says
// on its standard output what it is about to write and what was answered, until
// it is killed.
const childEnv = "JOURNAL_CHILD_DIR"

const killRegions = 64

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := killChild(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// life is a journal on Badger with one real image.
type life struct {
	store *badgerkv.Store
	j     *Journal
	vm    *VM
	d     *Disk
	f     *os.File
}

func openLife(dir string) (*life, error) {
	l := &life{}
	var err error
	if l.f, err = os.OpenFile(filepath.Join(dir, "disk.img"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	file, err := OSFile(l.f)
	if err != nil {
		return nil, err
	}
	facts, err := file.Facts()
	if err != nil {
		return nil, err
	}
	if l.store, err = badgerkv.Open(filepath.Join(dir, "state"), nil); err != nil {
		return nil, err
	}
	if l.j, err = Open(l.store, Options{ActivityRegions: 1024, Saved: filepath.Join(dir, "saved")}); err != nil {
		return nil, err
	}
	if l.vm, err = l.j.VM("vm"); err != nil {
		return nil, err
	}
	l.d, err = l.vm.AddDisk("disk.img", file, Identity{Ino: facts.Ino})
	return l, err
}

func killChild(dir string) error {
	l, err := openLife(dir)
	if err != nil {
		return err
	}
	if err := l.f.Truncate(killRegions * extent.RegionSize); err != nil {
		return err
	}
	l.d.size.Store(killRegions * extent.RegionSize)
	p := make([]byte, extent.BlockSize)
	for i := uint64(1); ; i++ {
		c := extent.Change{Off: rand.Int64N(killRegions) * extent.RegionSize, Len: extent.BlockSize}
		fmt.Println("epoch", l.vm.LastEpoch())
		fmt.Println("write", c.Off/extent.RegionSize)
		binary.LittleEndian.PutUint64(p, i)
		pass, err := l.d.Begin(c)
		if err != nil {
			return err
		}
		_, err = l.f.WriteAt(p, c.Off)
		l.d.End(c, pass, err)
		if err != nil {
			return err
		}
		fmt.Println("answered", c.Off/extent.RegionSize)
		if i%8 != 0 {
			continue
		}
		s, err := l.vm.Seal(SealRequest{SavedLimit: 1 << 30})
		if err != nil {
			return err
		}
		fmt.Println("epoch", s.Epoch)
		if err := s.MergeBack(); err != nil { // nothing is captured: all that was written stays suspect
			return err
		}
	}
}

// After a SIGKILL every region that was written is suspect, none that was never
// touched is, and no epoch number comes twice.
func TestI1_I5_I11_KilledProcess(t *testing.T) {
	dir := t.TempDir()
	answered, begun := map[int64]bool{}, map[int64]bool{}
	var epoch uint64
	for round := range 4 {
		epoch = max(epoch, killAfter(t, dir, 30+40*round, answered, begun))
		l, err := openLife(dir)
		if err != nil {
			t.Fatal(err)
		}
		suspect := extent.Of(l.d.Suspect()...)
		for g := range int64(killRegions) {
			is := suspect.Overlaps(region(g).blocks())
			if answered[g] && !is {
				t.Errorf("round %d: region %d was written and is not suspect", round, g)
			}
			if !begun[g] && is {
				t.Errorf("round %d: region %d was never touched and is suspect", round, g)
			}
		}
		if l.j.WasClean() || l.vm.LastEpoch() < epoch {
			t.Errorf("round %d: clean %v, epoch %d after %d", round, l.j.WasClean(), l.vm.LastEpoch(), epoch)
		}
		if err := errors.Join(l.j.Check(), l.store.Close(), l.f.Close()); err != nil {
			t.Error(err)
		}
	}
}

// killAfter runs a child, kills it after n lines and adds what it said to the ledger.
func killAfter(t *testing.T, dir string, n int, answered, begun map[int64]bool) (epoch uint64) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		var word string
		var number uint64
		if _, err := fmt.Sscan(lines.Text(), &word, &number); err != nil {
			t.Fatalf("child: %s", lines.Text())
		}
		switch word {
		case "write":
			begun[int64(number)] = true
		case "answered":
			answered[int64(number)] = true
		case "epoch":
			epoch = max(epoch, number)
		}
		if i == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("child ended by itself: %v", err)
	}
	return epoch
}
