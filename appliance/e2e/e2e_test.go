package e2e_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

// binary builds the appliance once for all tests of a run.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vhdrelay-e2e-")
	if err != nil {
		return "", err
	}
	return rig.Build(context.Background(), dir)
})

func TestMain(m *testing.M) {
	if code, is := rig.Keeper(); is {
		os.Exit(code)
	}
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // of no use to the next run
	}
	os.Exit(code)
}

// needs skips where the tests cannot run, and says why.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("minutes of load: not with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	for _, tool := range append(tools, "qemu-img") {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: run `make tools`", err)
		}
	}
}

// play runs a small stage in a directory that stays if it fails.
func play(t *testing.T, azure bool, run func(context.Context, *stage.Env, *stage.Report) error) {
	t.Helper()
	if _, err := azurite.Find(); azure && errors.Is(err, azurite.ErrMissing) {
		t.Skip(err)
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "vhdrelay-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	e := &stage.Env{Dir: dir, Binary: path, Short: true, Seed: uint64(time.Now().UnixNano()), Out: t.Output(), Azure: azure}
	t.Logf("seed %d, work in %s", e.Seed, dir)
	report := stage.NewReport(e.Out)
	if err := run(t.Context(), e, report); err != nil {
		t.Errorf("%v", err)
	}
	for _, f := range report.Failures() {
		t.Error(f)
	}
	for _, f := range report.Figures() {
		t.Logf("%s: %s", f.Name, f.Value)
	}
	if !t.Failed() {
		if err := e.Clean(); err != nil {
			t.Error(err)
		}
	}
}

func TestE2ELoadAndKillsToDirectory(t *testing.T) {
	needs(t)
	play(t, false, stage.Small{Load: 20 * time.Second, Kills: 3}.Run)
}

func TestE2EOutageOfAzure(t *testing.T) {
	needs(t, "node")
	play(t, true, stage.Small{Load: 10 * time.Second, Away: 12 * time.Second}.Run)
}

func TestE2EPowerCut(t *testing.T) {
	needs(t, "losetup", "mkfs.ext4", "findmnt")
	play(t, false, stage.Small{Cuts: 2}.Run)
}

// TestE2ECrashes: kills and power cuts at random, and at some failpoints of every kind; the acceptance stages do hundreds, and all.
func TestE2ECrashes(t *testing.T) {
	needs(t, "losetup", "mkfs.ext4", "findmnt")
	play(t, false, stage.Crashes)
}

func TestE2EFailpoints(t *testing.T) {
	needs(t, "losetup", "mkfs.ext4", "findmnt")
	play(t, false, stage.Failpoints)
}

// TestE2ESyncedWritesSurviveAPowerCut, whatever asked for the sync.
func TestE2ESyncedWritesSurviveAPowerCut(t *testing.T) {
	needs(t, "losetup", "mkfs.ext4", "findmnt")
	play(t, false, stage.Synced)
}

// TestE2EFsx: random operations, through the real journal to points.
func TestE2EFsx(t *testing.T) {
	needs(t)
	play(t, false, stage.FsxSmall)
}

func TestE2EReplicaIsAVHD(t *testing.T) {
	needs(t, "vhdiinfo")
	play(t, true, stage.Format)
}

// TestE2EFormats: images with a block table, as qemu writes them.
func TestE2EFormats(t *testing.T) {
	needs(t, "qemu-io", "qemu-storage-daemon")
	play(t, false, stage.FormatsSmall)
}

// TestE2EFormatsUnquiet: the same images while qemu writes, and somebody is killed.
func TestE2EFormatsUnquiet(t *testing.T) {
	needs(t, "qemu-io", "qemu-storage-daemon")
	play(t, false, stage.UnquietSmall)
}

// TestE2EClients: qemu, loop devices and file tools as people use them; the others are in the acceptance stage.
func TestE2EClients(t *testing.T) {
	needs(t, "losetup", "mkfs.ext4")
	play(t, false, stage.ClientsSmall)
}

// TestE2EHandover ends the process that serves under every kind of load; the next one takes the mount over.
func TestE2EHandover(t *testing.T) {
	needs(t, "fio", "sqlite3", "losetup", "mkfs.ext4")
	play(t, false, stage.HandoverSmall)
}
