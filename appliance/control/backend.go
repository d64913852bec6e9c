package control

import (
	"context"
	"io"
)

// Backend is what the appliance offers through the socket. A method that fails returns an *Error where the operator can do
// something about it; any other error crosses as CodeInternal. A cancelled ctx means that the client has gone away: waiting
// ends, work that was begun does not.
//
// To offer more, add a method here, a route in the server and a method of the same shape to Client.
type Backend interface {
	Watcher
	// Status reports one VM, or all for "". CodeNotFound if there is no such VM.
	Status(ctx context.Context, vm string) (Status, error)
	// Points lists the recovery points of a VM, oldest first.
	Points(ctx context.Context, vm string) (Points, error)
	// Sync seals the VM now and ships, trying at once what waits for a retry. With wait it returns when the epoch has become
	// a point, or is known not to become one. progress is called from one goroutine at a time and may be slow.
	Sync(ctx context.Context, vm string, wait bool, progress func(Progress)) (SyncResult, error)
	// Resync has a disk of the VM, or with disk "" all of them, compared. It returns when the comparison is done, unless the
	// options make it wait for the window: then at once.
	Resync(ctx context.Context, vm, disk string, opts ResyncOptions, progress func(Progress)) (Resync, error)
	// Pause stops what is sent of a VM, Resume lets it go on and tries at once what an operator had to mend, Protect takes a
	// VM back in. ExitRefused where the state does not allow it. They return when it is durable and done.
	Pause(ctx context.Context, vm string) (Moved, error)
	Resume(ctx context.Context, vm string) (Moved, error)
	Protect(ctx context.Context, vm string) (Moved, error)
	// Unprotect stops the tracking of a VM, removes what is kept of it here, and with DeleteReplica what the target holds.
	// It returns when that is done, or with the error of a first attempt; it then goes on by itself, over restarts too.
	Unprotect(ctx context.Context, vm string, opts UnprotectOptions) (Moved, error)
	// Unmount takes the mount of a store away, or with store "" those of all. Unless force is set it refuses while files are
	// open there, and names who has them; with it they see I/O errors. What was taken away stays so until the next start.
	Unmount(ctx context.Context, store string, force bool) (Unmounted, error)
	// Adopt makes this host the writer of a VM that another one replicated, or takes replicas that others put at the target for
	// its disks. What the target holds is compared and not sent again; it returns when that is done.
	Adopt(ctx context.Context, vm string, progress func(Progress)) (Resync, error)
	// JournalCheck proves the journal's invariants.
	JournalCheck(ctx context.Context) error
	// JournalDump writes the journal as text, for people, or as one JSON array, for scripts.
	JournalDump(ctx context.Context, w io.Writer, o DumpOptions) error
}
