// Package journal is the write path's memory: which regions of an image may
// differ from what was last captured and synced (the activity log, on stable
// storage before the data is: I1), which blocks changed since the last seal
// (change sets, one per disk and phase), and how a sealed epoch reads the bytes
// as they were at the seal while guests go on writing (I2, I3).
//
// README.md is the crash document: formats, what a crash leaves, recovery.
//
// It owns Badger (in journal/kv/badgerkv; the contract is journal/kv) and
// imports of this module only its own rooms, journal/extent among them. It runs
// no loop of its own except, while the journal is failing, the one that tries
// to leave that state.
//
// The order of locks, outermost first: Disk.resize (held over a size-changing
// operation, its I/O included), VM.seal (held over housekeeping, its I/O
// included), VM.mu and Journal.mu (no I/O), Journal.commit (held over one synced
// store commit), Disk.mark (held over setting an image's mark), shard.mu (no
// I/O). A write in the steady state takes none of them.
package journal
