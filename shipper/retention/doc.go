// Package retention thins out the recovery points of a VM and deletes what no
// kept point needs any more.
//
// Keep is the rule, pure; Pruner carries it out. Invariant I5 is kept by the
// order: records first, newest first, then segments and snapshots, and those
// only once they have been unneeded for Grace, so that a reader who saw the
// record has had time to write its pin. Whatever is deleted is named again by
// the next run, so a crash anywhere leaves nothing to repair: at worst the hour
// starts again, because the clock of the unneeded is in memory only.
//
// May import shipper/catalog and shipper/target.
package retention
