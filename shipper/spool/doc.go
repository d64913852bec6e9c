// Package spool is the local directory of one VM's sealed epochs, from their capture until the target holds them.
//
// An epoch is in the spool when its manifest is: the segments are synced first, the manifest is put in place last, as a
// whole. Everything else follows from that. A directory without a manifest is a draft and is deleted at a start; an epoch
// leaves by its manifest first; a manifest that could not be synced is durably unlinked, or the VM does not capture
// (ErrUnsettled). Formats, crash states and recovery steps are in shipper/README.md.
//
// The spool knows nothing of tables, targets or quotas: it says what it holds (Manifests, Bytes) and does what it is told
// (Release, IntendGiveUp, FinishGiveUp), durably and in the order that the invariants I4 and I10 need.
package spool
