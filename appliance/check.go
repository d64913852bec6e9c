package appliance

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// codeInconsistent is what a script gets when `journal check` finds something.
const codeInconsistent control.Code = "state-inconsistent"

// checkState holds everything in a state directory against each other, with no appliance running.
func checkState(store kv.Store, dir string) error {
	where := filepath.Join(dir, "journal")
	found := journalFinding(where, journal.Check(store))
	vms, err := journal.Inventory(store)
	if err != nil {
		return inconsistent(append(found, journalFinding(where, err)...))
	}
	for _, vm := range vms {
		f := shipper.Files{Name: vm.Name, ID: vm.ID, Docs: journal.Stored{Store: store}, Spool: filepath.Join(dir, "spool", vm.ID),
			TableDir: filepath.Join(dir, "tables"), Disks: vm.Disks, Reserved: vm.Reserved}
		found = append(found, f.Check()...)
	}
	return inconsistent(found)
}

// checkLive is checkState while the appliance works.
func (a *Appliance) checkLive() error {
	found := journalFinding(filepath.Join(a.config().StateDir, "journal"), a.journal.Check())
	for _, m := range a.machines() {
		found = append(found, m.pipeline.Check()...)
	}
	return inconsistent(found)
}

func journalFinding(dir string, err error) []*shipper.Finding {
	if err == nil {
		return nil
	}
	return []*shipper.Finding{{File: dir, What: err,
		Action: "stop the appliance, keep a copy of state_dir, empty it and start: the VMs are taken over again and compared"}}
}

// inconsistent is nil if nothing was found, else an error with a line for each finding.
func inconsistent(found []*shipper.Finding) error {
	if len(found) == 0 {
		return nil
	}
	var lines, actions []string
	var errs []error
	for _, f := range found {
		lines, errs = append(lines, f.Error()), append(errs, f)
		if len(actions) == 0 || actions[len(actions)-1] != f.Action {
			actions = append(actions, f.Action)
		}
	}
	return &control.Error{Code: codeInconsistent, Message: strings.Join(lines, "\n"), Action: strings.Join(actions, "; then "),
		Exit: control.ExitDiffers, Err: errors.Join(errs...)}
}
