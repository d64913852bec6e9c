// Package sim plays random histories of the whole data path in one process and in virtual time, and holds what becomes of
// them against an oracle that knows only what guests and disks could see.
//
// Real are the journal (over its memory store), capture, spool, checksum tables, shipping, apply, initial replication,
// pruning, takeover, restore and comparison. Modelled are the image files and the file system of the state directory, each
// with what is durable and what is not, the key-value store and the target (shipper/target/fake). Guests write while
// everything else runs; what strikes them is drawn from the seed: see fate.go for the list.
//
// Time is virtual (testing/synctest). An operation that is slow does not sleep but yields the processor many times: a sleep
// under one of the many mutexes that are held over local I/O would stop the clock for ever.
//
// Images are raw, fixed VHD, dynamic VHD and VHDX. The last two are written as a hypervisor writes them, sector by sector and in
// any order (hypervisor.go); the oracle finds the disk in the file's bytes by itself (oracle.Virtual).
//
// An oracle cannot see the seal. It knows for every seal which requests were answered before it was asked for, which were
// sent after it was answered, and tries the cuts between (sim/oracle).
package sim
