// Package resync is the second opinion: it finds what differs between a source
// disk and our model of its target by comparing checksums, and hands that to
// the ordinary delta path.
//
// It owns the checksum table (resync/checksum) and the comparisons. It may
// import the leaves journal/extent and resync/checksum; the foreign dependency
// minio/crc64nvme is imported by resync/checksum alone. What it needs from
// other rooms it declares as small interfaces.
//
// Invariants: a comparison never writes to source or target (I8); a range
// counts as compared only after its differences are in the change set (I4); it
// reads what is suspect and nothing else (I11).
//
// A crash leaves of a comparison what the source still lists as suspect: the
// next run starts there. What a crash leaves of a table is in README.md.
package resync
