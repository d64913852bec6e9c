// Package segment is the file format of one epoch of one disk: which blocks changed, what is in them now, and the checksum
// of every one of them.
//
// A segment is written once, from front to back, into a draft of the spool, and read by everything after that: the checksum
// table (block checksums only, no decompression), the ship loop (opaque bytes and the CRC-64 of the whole), the fold and the
// restore (extents, frames). It describes itself and can be verified with nothing else at hand. The byte diagram is in
// shipper/README.md; format.go holds the same as constants that never change.
//
// The package is a leaf: of ours it imports journal/extent and resync/checksum, and it owns the zstd dependency.
//
// Memory: a writer holds one frame (4 MiB), its compressed form (as much, not at level off) and 12 bytes per extent; a reader holds the index and
// what Frame returned. Frame-sized buffers are pooled. One zstd encoder per level serves the whole process: compression
// takes at most one core from the guests, and its tables exist once.
package segment
