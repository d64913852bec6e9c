// Package target is the contract between the shipper and the place replicas
// are kept: one small, page-blob-shaped interface. The Azure target, the
// directory target and the fault-injecting fake implement it and pass one
// conformance suite (package targettest).
//
// # Names
//
// Names are slash separated and relative to the target's prefix, without a
// leading, trailing or doubled slash and without "." or ".." elements; the
// caller has encoded them (package catalog). Implementations refuse others with
// ErrName before anything is sent.
//
// No name is the parent of another ("a" and "a/b"). A name belongs either to a
// small object or to a page blob.
//
// # Durability
//
// A method that returned nil has its effect on stable storage.
//
// # Errors
//
// Every error of every method is a *Error, also where a context ended: the
// implementation classifies, because only it knows whether a request can still
// take effect. Two questions have to be answered by every caller that writes:
//
//   - Error.Outcome. Known: the request was refused, changed nothing and never
//     will. Unknown: it may have been applied, or may be applied *later*, after
//     requests that were sent after it (AZURE.md 1.1). Reads change nothing and
//     are always Known.
//   - May it be repeated? Each method says what a repetition finds when the
//     first attempt was applied after all.
//
// No method repeats anything by itself: exactly one layer retries (package
// retry), and it sits above this contract.
//
// # Concurrency
//
// All methods may be called at the same time. Writes to one blob that overlap
// are serialised in an unspecified order.
package target

import (
	"context"
	"iter"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// Limits of the contract, in bytes; they are the page blob's own (AZURE.md 1.1,
// 1.2). Every implementation enforces them, so that none can be passed by
// accident on a laxer one.
const (
	PageSize    = 512      // unit of sizes, offsets and lengths of page writes
	MaxPut      = 4 << 20  // largest PutPages
	MaxPages    = 8 << 40  // largest page blob
	MaxObject   = 64 << 20 // largest small object
	MaxMetadata = 8 << 10  // keys and values of one snapshot together
	MaxName     = 1024     // a name, prefix not counted
	MaxSum      = 64 << 20 // largest range of a Sum
)

// Target keeps small objects (block blobs), which are read and written whole,
// and page blobs, which are written in place, fenced by a lease and a sequence
// number, and have read-only snapshots.
type Target interface {
	// Get reads a small object whole. ErrNotFound if there is none.
	// Repeat: freely. After an error: nothing changed.
	Get(ctx context.Context, name string) (Object, error)

	// Create makes a small object that must not exist yet (If-None-Match: *);
	// ErrExists if it does. It becomes visible whole or not at all.
	// Repeat: after Unknown, yes; ErrExists may then be our own first attempt, so
	// the caller reads it back and compares.
	// After an error: Known, nothing; Unknown, absent, present, or present later.
	Create(ctx context.Context, name string, data []byte) (etag string, err error)

	// Replace overwrites a small object whose ETag is still the one given
	// (If-Match); ErrCondition otherwise, also if the object is gone.
	// Repeat: after Unknown, yes; ErrCondition may then be our own first attempt,
	// so the caller reads it back.
	// After an error: the old content or the new one, never a mixture.
	Replace(ctx context.Context, name string, data []byte, etag string) (newETag string, err error)

	// Delete removes a small object, or a page blob without a lease and without
	// snapshots (ErrLeased, ErrSnapshots). Absent is success.
	// Repeat: freely, as long as the name is never used again: a late Delete
	// removes whatever has the name by then.
	Delete(ctx context.Context, name string) error

	// DeleteIf removes a small object whose ETag is still the one given (If-Match);
	// ErrCondition otherwise. Absent is success.
	// Repeat: freely, and the name may be used again: a late one finds another ETag.
	DeleteIf(ctx context.Context, name, etag string) error

	// List yields the objects and page blobs (not snapshots) whose name starts
	// with prefix, in byte order of the names. What is created or deleted
	// meanwhile may or may not be seen; everything else is seen exactly once.
	// The prefix is a plain string, not a directory; "" lists everything.
	// An error ends the sequence, and then what was yielded is *no* list: the
	// caller drops all of it.
	// Repeat: freely.
	List(ctx context.Context, prefix string) iter.Seq2[Item, error]

	// CreatePages makes a page blob of size zero bytes with the given sequence
	// number that must not exist yet; ErrExists if it does, leased or not.
	// size is a multiple of PageSize, at most MaxPages (ErrTooLarge).
	// Repeat and remains: as Create; what was created is all zeros.
	CreatePages(ctx context.Context, name string, size, sequence int64) error

	// Properties of a page blob (snapshot "") or of one of its snapshots.
	// ErrNotFound if there is none. On a small object the result is unspecified.
	// Repeat: freely.
	Properties(ctx context.Context, name, snapshot string) (Properties, error)

	// PutPages writes data at off, both multiples of PageSize, at most MaxPut
	// (ErrTooLarge), within the blob (ErrRange). sum is the CRC-64 of data; the
	// target computes it too and refuses a difference with ErrChecksum, which is
	// Known and recoverable: the bytes changed on their way.
	// g is checked by the target: ErrSequence, ErrLeased.
	// Repeat: after Known, yes. After Unknown only once the sequence number was
	// raised, else the first attempt may land behind a newer put.
	// After Unknown: each page of the range holds old or new bytes.
	PutPages(ctx context.Context, name string, off int64, data []byte, sum checksum.Sum, g Guard) error

	// ClearPages makes [off, off+n) read as zeros and frees the space; any length
	// within the blob, multiples of PageSize. Else as PutPages.
	ClearPages(ctx context.Context, name string, off, n int64, g Guard) error

	// ReadPages fills p from off of a page blob (snapshot "") or a snapshot: all
	// of p, or an error and p is garbage. The range lies within the blob
	// (ErrRange); any alignment, any length.
	// Repeat: freely. The bytes are checked against damage in transit where the
	// service offers it; the caller's own checksums are the proof.
	ReadPages(ctx context.Context, name, snapshot string, off int64, p []byte) error

	// Sum is the CRC-64 of [off, off+n) of a page blob (snapshot "") or a snapshot,
	// computed where the bytes are: they do not cross the network. At most MaxSum
	// (ErrTooLarge), any alignment, 0 for no bytes. The range lies within the blob:
	// ErrRange where the target can tell, else the sum is of what there is.
	// ErrNoSum: this service computes none, read the bytes instead.
	// Repeat: freely. It changes nothing that any other method shows.
	Sum(ctx context.Context, name, snapshot string, off, n int64) (checksum.Sum, error)

	// Ranges tells which parts of [off, off+n) may hold something but zeros:
	// sorted, disjoint, clipped to the range asked for, which lies within the
	// blob (ErrRange). It may be coarser than what was written, never finer: what
	// is not covered reads as zeros.
	// Repeat: freely. With an error there is no list at all.
	Ranges(ctx context.Context, name, snapshot string, off, n int64) ([]ByteRange, error)

	// Resize sets the size, a multiple of PageSize; what is added reads as zeros,
	// what is cut off is gone, also if it grows again. Guarded like PutPages. The
	// service has no sequence condition here: implementations read the number
	// and the ETag, and resize under If-Match, so another's write between fails
	// it with ErrCondition.
	// Repeat: after Known, yes; after Unknown only once the number was raised.
	Resize(ctx context.Context, name string, size int64, g Guard) error

	// SetSequence sets the sequence number to an absolute value ≥ 0, whatever it
	// was, under lease ("": none) and ifMatch ("": none), and returns the new
	// ETag, which differs from every earlier one. ErrCondition, ErrLeased.
	// Repeat: after Unknown read Properties first: the ETag has changed if it was
	// applied. Without ifMatch a late one sets an old number again, so
	// only a first raise after a takeover may go without.
	SetSequence(ctx context.Context, name string, sequence int64, lease, ifMatch string) (etag string, err error)

	// Snapshot freezes the blob as it is now, under lease ("": none, and then a
	// lease in force is *ignored*) and ifMatch ("": none), with metadata of its
	// own: keys of lower-case letters, digits and '_' that start with a letter,
	// values of printable ASCII. Size, sequence number and content are copied;
	// the ETag of the base stays. The id is unique within the blob and sorts by
	// age.
	// Repeat: after Unknown look into Snapshots for one's own metadata first; a
	// repetition makes a second snapshot, harmless.
	Snapshot(ctx context.Context, name, lease, ifMatch string, metadata map[string]string) (id string, err error)

	// Snapshots lists the snapshots of a page blob, oldest first; none if the
	// blob does not exist. Repeat: freely. With an error there is no list.
	Snapshots(ctx context.Context, name string) ([]SnapshotInfo, error)

	// DeleteSnapshot removes one snapshot; absent is success. Ids are never used
	// again, so it may be repeated freely. The base's lease does not matter.
	DeleteSnapshot(ctx context.Context, name, id string) error

	// DeletePages removes a page blob under lease ("": none); absent is success.
	// ErrSnapshots while it has any; ErrLeased.
	// Repeat: freely under a lease; without, as Delete.
	DeletePages(ctx context.Context, name, lease string) error

	// AcquireLease takes the infinite lease of a page blob under a proposed id (a
	// UUID in its usual form). The same id again is success, ErrLeased if another
	// id holds it, ErrNotFound. The ETag stays.
	// Repeat: freely: after Unknown the repetition tells.
	AcquireLease(ctx context.Context, name, id string) error

	// BreakLease ends whoever's lease at once; no lease is success. From then on
	// writes with the old id fail, and writes with *no* id succeed: never write
	// without one.
	// Repeat: after Unknown only before taking a lease of one's own: a late break
	// ends that one too, which shows as ErrLeaseLost, and it is taken again.
	BreakLease(ctx context.Context, name string) error

	// ReleaseLease gives the lease back; not leased is success, another's lease
	// is ErrLeased. Repeat: freely.
	ReleaseLease(ctx context.Context, name, id string) error

	// String is the target's URL without anything secret.
	String() string
}

// Object is a small object read whole.
type Object struct {
	Data []byte
	ETag string // opaque; changes with every content written
}

// Item is one entry of List.
type Item struct {
	Name     string
	Size     int64 // bytes
	Pages    bool  // a page blob
	Modified time.Time
}

// Properties of a page blob or of a snapshot.
type Properties struct {
	Size     int64  // bytes
	ETag     string // changes with PutPages, ClearPages, Resize, SetSequence; not with leases and snapshots
	Sequence int64
	Leased   bool // a lease is in force; always false for a snapshot
	Metadata map[string]string
}

// SnapshotInfo is one snapshot of a page blob.
type SnapshotInfo struct {
	ID       string
	Metadata map[string]string
	Size     int64 // bytes of the blob when it was taken
	Time     time.Time
}

// ByteRange is [Off, Off+Len) of a page blob, in bytes.
type ByteRange struct{ Off, Len int64 }

// End is one past the last byte.
func (r ByteRange) End() int64 { return r.Off + r.Len }

// Guard is what a change of a page blob is allowed by: both are checked by the
// target, at the moment the change takes effect, a late landing included.
type Guard struct {
	Lease    string // "": none, and then the blob must not be leased
	Sequence int64  // the blob's number must equal it; negative: not checked
}

// Unguarded is for blobs that only their creator ever writes: log segments.
var Unguarded = Guard{Sequence: -1}
