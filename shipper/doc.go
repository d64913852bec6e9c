// Package shipper carries sealed epochs from the source to the target, and makes recovery points of them.
//
// capture reads the sealed view into segments and commits their manifest; ship puts them to the target and creates the record;
// apply folds recorded epochs into the replica and takes its snapshot; prune deletes what no point needs. The stages are loops of
// their own with bounded queues: a slow one never stops the one before it.
//
// # Owns
//
// Segments (shipper/segment), the spool (shipper/spool), the target contract and its implementations (shipper/target, dir,
// pageblob, fake), names and documents at the target (shipper/catalog), restore and retention. The Azure SDK is imported by
// shipper/pageblob only, zstd by shipper/segment only.
//
// # May import
//
// Of ours the leaves journal/extent, journal/durable, resync/checksum, fs/image and its own rooms; never fs, journal, resync or
// appliance. What it needs of those it declares as small interfaces, and appliance wires them.
//
// # Invariants
//
// I4 (nothing is dropped), I5 (commit last), I6 (apply in order), I7 (one writer), I10 (bounded space), I12 (nothing is silent).
//
// # What a crash leaves
//
// Locally a spool in one of the states of README.md, which Open brings back by its numbered steps. At the target segments
// without a record, a record without an apply, a fold without its snapshot: each is found and gone on with, none is ever
// offered as a point.
package shipper
