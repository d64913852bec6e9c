package shipper

import "github.com/vhdrelay/vhdrelay/shipper/retry"

// Meanings are the codes of this package's own Problems, and of package catalog.
func Meanings() []retry.Meaning {
	return []retry.Meaning{
		{Code: "bad-image", Class: retry.NonRecoverable, Action: "repair or remove the image, then resume the VM"},
		{Code: CodeChain, Class: retry.NonRecoverable, Action: "put the image that is named into its place in the store, as it was, then resume the VM"},
		{Code: "epoch-given-up", Class: retry.Recoverable, Action: "none: the blocks are captured again"},
		{Code: "epoch-recorded", Class: retry.NonRecoverable, Action: "nothing to do: the epoch is kept"},
		{Code: "epoch-void", Class: retry.NonRecoverable, Action: "nothing to do: the epoch was given up; its changes come with a later one"},
		{Code: "foreign-record", Class: retry.NonRecoverable, Action: "another appliance writes under our generation, or this one's state was reverted; find out which, then run: vhdrelay adopt VM"},
		{Code: "format-version", Class: retry.NonRecoverable, Action: "upgrade vhdrelay on this machine"},
		{Code: "malformed-document", Class: retry.NonRecoverable, Action: "restore the document from a backup of the target: it was damaged or changed by hand"},
		{Code: "vm-contended", Class: retry.Recoverable, Action: "look for a second appliance that writes to this VM"},
		{Code: "vm-not-found", Class: retry.NonRecoverable, Action: "check the name and target.url"},
		{Code: "fenced", Class: retry.NonRecoverable, Action: "shut the VM down here; on the host that shall own it run: vhdrelay adopt VM"},
		{Code: "owned-by-another", Class: retry.NonRecoverable, Action: "choose another prefix or VM name, or take it over with: vhdrelay adopt VM"},
		{Code: "not-connected", Class: retry.Recoverable, Action: "none: it goes on when the target answers"},
		{Code: "replica-exists", Class: retry.NonRecoverable, Action: "use what is there: vhdrelay adopt VM; or delete the blob, then run: vhdrelay sync VM"},
		{Code: "replica-not-ours", Class: retry.NonRecoverable, Action: "delete it from the host that owns it, or keep it: vhdrelay unprotect VM"},
		{Code: "target-lost", Class: retry.NonRecoverable, Action: "correct target.url, then: vhdrelay resume VM; if the replica was deleted on purpose: vhdrelay unprotect VM, then vhdrelay protect VM"},
	}
}
