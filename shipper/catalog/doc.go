// Package catalog is what a target says about its VMs: the names of all blobs,
// the documents vm.json, the records of recovery points and the pins of
// readers, and the rules by which a reader judges them.
//
// Invariants kept here: I5, a point exists exactly when its record does, is
// created once and never overwritten; I7, vm.json changes only under If-Match.
//
// May import shipper/target and the leaves. Nothing here repeats a request that
// failed: what is repeated is only the read-modify-write of UpdateVM and the
// reading back after a create whose outcome is unknown.
//
// A crash leaves whole documents only, since each is one request: a record is
// there or not, a pin outlives its reader until the time it names.
package catalog
