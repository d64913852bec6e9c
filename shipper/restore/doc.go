// Package restore reads a recovery point back: from the newest snapshot of a
// replica at or before the point, and the segments from there up to it.
//
// It needs nothing but the target, so it runs on any machine. It writes nothing
// there but a pin, which keeps the writer from pruning what is being read.
//
// Invariants: I5, a fold takes the segments that the records list and no others,
// across an unbroken chain, each checked against its record; I6, a half-applied
// replica is never read, only snapshots are.
//
// A crash of an export leaves <output>.partial and <output>.partial.cursor; the
// same export goes on from the cursor. A final name appears only when every byte
// behind it is durable and proven against the CRC-64 in the record.
//
// May import shipper/catalog, shipper/target and the leaves.
package restore
