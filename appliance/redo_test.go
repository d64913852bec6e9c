package appliance

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// died waits for a child that ends itself at a failpoint.
func (r *rig) died(cmd *exec.Cmd) {
	r.t.Helper()
	_ = cmd.Wait() // says which signal it was
	unix.Unmount(r.mount, unix.MNT_DETACH)
}

// A crash in any gap of the way from a seal to a point loses nothing that was
// answered, and no more than the active regions are compared.
func TestI4_CrashInTheGaps(t *testing.T) {
	for _, point := range []string{
		journal.AfterPhaseSwitch, shipper.PointAfterSeal, shipper.PointBeforeManifest, shipper.PointAfterManifest, shipper.PointAfterTable,
		shipper.PointAfterUpload, shipper.PointBeforeRecord, shipper.PointAfterRecord, shipper.PointAfterCounted,
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			content := r.content(16 * mib)
			r.put("web/os.img", bytes.Clone(content))
			r.start()
			r.sync("web")
			r.stop()
			r.failpoint = point
			cmd := r.child()
			r.change("web/os.img", 5*mib, []byte("answered before the crash"))
			copy(content[5*mib:], "answered before the crash")
			r.must(os.WriteFile(r.path+armed, nil, 0o600))
			// Once the record counts, the answer may be faster than the crash.
			if _, err := r.client.Sync(r.ctx(), "web", true, nil); !errors.Is(err, &control.Error{Code: control.CodeInterrupted}) && (err != nil || point != shipper.PointAfterCounted) {
				t.Errorf("sync through a crash: %v", err)
			}
			r.died(cmd)
			r.start()
			r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
			// Nothing is suspect where the region was deactivated before the crash.
			if v := r.vm("web"); v.Recovery.SuspectBytes > 4*mib || (v.Recovery.SuspectBytes > 0 && v.Recovery.Reason != journal.ReasonUnclean) {
				t.Errorf("%+v", v.Recovery)
			}
			if err := r.client.JournalCheck(r.ctx()); err != nil {
				t.Error(err)
			}
		})
	}
}

// armed is what the name of a file beside the config ends in that lets a child die.
const armed = ".armed"

// dieAt ends the process at the named failpoint, as a crash does, once it is armed.
func dieAt(name, config string) func(string) {
	if name == "" {
		return nil
	}
	return func(point string) {
		if point != name {
			return
		}
		if _, err := os.Stat(config + armed); err != nil {
			return
		}
		if os.Getenv(termEnv) != "" {
			_ = unix.Kill(os.Getpid(), unix.SIGTERM)
		} else {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // the signal is on its way
		}
	}
}
