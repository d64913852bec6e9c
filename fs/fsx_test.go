package fs

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/fsx"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

var (
	fsxSeed = flag.Uint64("fsx.seed", 0, "seed of the random operations; 0: a new one each time")
	fsxRuns = flag.Int("fsx.runs", 4, "runs of the random operations, each with a seed of its own")
	fsxOps  = flag.Int("fsx.ops", 5000, "operations of a run")
)

// fsxFiles are what a run works on: two disks and a file that is none.
var fsxFiles = []string{"disk.vhd", "data.raw", "note"}

const fsxEvery = 500 // operations between two looks behind the mount

// TestI1_RandomOperationsEqualAPlainFile does the same on files at the mount and on plain files, and wants the same
// answers and bytes. The recorders check meanwhile that every change lies between Begin and End, and at intervals that
// the blocks that differ since the last time are among those that were announced.
func TestI1_RandomOperationsEqualAPlainFile(t *testing.T) {
	for i := range *fsxRuns {
		seed := *fsxSeed + uint64(i)
		if *fsxSeed == 0 {
			seed = rand.Uint64()
		}
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { fsxRun(t, seed) })
	}
}

// fsxRun does one run, in a child: it maps files.
func fsxRun(t *testing.T, seed uint64) {
	m := newTestStore(t)
	replay := fmt.Sprintf("go test ./fs -run TestI1_RandomOperationsEqualAPlainFile -fsx.runs 1 -fsx.seed %d -fsx.ops %d", seed, *fsxOps)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, m.mnt, t.TempDir(), strconv.FormatUint(seed, 10), strconv.Itoa(*fsxOps), replay)
	cmd.Env = append(os.Environ(), childEnv+"=fsx")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seals := map[string][]byte{}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if line != fsxCheckpoint {
			rest, _ := io.ReadAll(lines)
			if waitErr := cmd.Wait(); waitErr != nil || line != "" {
				t.Errorf("%v, %v\n%s%s", waitErr, err, line, rest)
			}
			return
		}
		m.sealed(t, seals, replay)
		if _, err := io.WriteString(in, "go on\n"); err != nil {
			t.Fatal(err)
		}
	}
}

const fsxCheckpoint = "checkpoint\n"

func childFsx(args []string) error {
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	ops, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	o := fsx.Options{Seed: seed, Ops: ops, Every: fsxEvery, Replay: args[4]}
	for _, name := range fsxFiles {
		o.Pairs = append(o.Pairs, fsx.Pair{Mount: filepath.Join(args[0], name), Plain: filepath.Join(args[1], name)})
	}
	answers := bufio.NewReader(os.Stdin)
	o.Checkpoint = func(int) error {
		fmt.Print(fsxCheckpoint)
		_, err := answers.ReadString('\n')
		return err
	}
	_, err = fsx.Run(context.Background(), o)
	return err
}

// sealed compares each disk with what it was the last time: a block that differs was announced since.
func (m *testStore) sealed(t *testing.T, seals map[string][]byte, replay string) {
	t.Helper()
	for _, r := range m.vols.all() {
		now, err := os.ReadFile(m.backing(r.name))
		if err != nil {
			t.Fatal(err)
		}
		told := toldOf(r.takeChanges(), int64(len(seals[r.name])))
		for _, b := range differing(seals[r.name], now) {
			if !told.Contains(extent.Range[extent.FileBlock]{Start: b, End: b + 1}) {
				t.Errorf("%s: block %d has changed and nobody was told; repeat with: %s", r.name, b, replay)
			}
		}
		seals[r.name] = now
	}
}

// toldOf adds up the blocks that changes cover, of a file that had size bytes before them.
func toldOf(changes []extent.Change, size int64) extent.Set[extent.FileBlock] {
	var told extent.Set[extent.FileBlock]
	for _, c := range changes {
		if c.Kind == extent.Truncate {
			from, to := min(size, c.Off), max(size, c.Off)
			told.Add(extent.Cover[extent.FileBlock](from, to-from))
			size = c.Off
			continue
		}
		told.Add(extent.Cover[extent.FileBlock](c.Off, c.Len))
		size = max(size, c.Off+c.Len)
	}
	return told
}

// differing lists the blocks in which two states of a file differ; behind its end a file is zero.
func differing(a, b []byte) []extent.FileBlock {
	var list []extent.FileBlock
	n := max(len(a), len(b))
	block := func(s []byte, off int) []byte {
		p := make([]byte, extent.BlockSize)
		copy(p, s[min(off, len(s)):])
		return p
	}
	for off := 0; off < n; off += extent.BlockSize {
		if !bytes.Equal(block(a, off), block(b, off)) {
			list = append(list, extent.FileBlock(off/extent.BlockSize))
		}
	}
	return list
}

// TestSealedSeesWhatNobodyWasTold: the check of the test above finds a change behind the tracker's back.
func TestSealedSeesWhatNobodyWasTold(t *testing.T) {
	old := make([]byte, 3*extent.BlockSize)
	now := bytes.Clone(old)
	now[5000] = 1
	told := toldOf([]extent.Change{{Kind: extent.Write, Off: 0, Len: 10}, {Kind: extent.Truncate, Off: 9000}}, int64(len(old)))
	got := differing(old, now)
	if len(got) != 1 || got[0] != 1 || told.Contains(extent.Cover[extent.FileBlock](5000, 1)) || !told.Contains(extent.Cover[extent.FileBlock](9000, 1)) {
		t.Errorf("differing %v, told %v", got, told.Ranges())
	}
	if got := differing(old[:4096], append(bytes.Clone(now[:4096]), 0, 0)); len(got) != 0 {
		t.Errorf("zeros behind the end differ: %v", got)
	}
}

// childMmap writes args[1] through a shared mapping to the file args[0], without msync.
func childMmap(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := unix.Mmap(int(f.Fd()), 0, len(args[1]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(p, args[1])
	return unix.Munmap(p)
}

// TestMappedWritesArriveAtClose: what a mapping changed is in the backing file, and announced, when the last user has
// closed it.
func TestMappedWritesArriveAtClose(t *testing.T) {
	needSharedMappings(t)
	m := newTestStore(t)
	mustWrite(t, m.path("disk.vhd"), make([]byte, 8192))
	r := m.vols.recorder(t, "disk.vhd")
	r.takeChanges()
	runChild(t, "mmap", m.path("disk.vhd"), "through the mapping")
	if got, err := os.ReadFile(m.backing("disk.vhd")); err != nil || !bytes.HasPrefix(got, []byte("through the mapping")) {
		t.Errorf("%q, %v", got[:20], err)
	}
	if len(r.takeChanges()) == 0 {
		t.Error("no change was announced")
	}
}
