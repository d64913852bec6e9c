// Package dir is the directory target: the layout of the Azure target as plain
// files, for a NAS, a second disk, or a test.
//
//	<root>/.vhdrelay-target/format          version; without it, an empty directory is no target (is it mounted?)
//	<root>/.vhdrelay-target/lock            held while a small object is replaced
//	<root>/.vhdrelay-target/tmp/            files being made, each after the name of its maker's lock; swept by a
//	                                        writer's Open when nobody holds the lock, or after a day
//	<root>/a/b/vm.json                      a small object: the file is the object
//	<root>/a/b/replica.vhd                  a page blob: a sparse file of its size
//	<root>/a/b/.vhdrelay/replica.vhd/       what belongs to that blob:
//	    lock                                shared by puts, exclusive for everything else that writes
//	    state.json                          sequence number, lease, part of the ETag
//	    <id>.vhd, <id>.json                 a snapshot and its metadata; it exists when the .vhd does
//
// Elements longer than NAME_MAX allows are cut into nested directories whose
// names end in a reserved suffix, so every name of the contract has a place.
// All paths are opened below the root (os.Root): neither a name nor a symbolic
// link leads out.
//
// # What a crash leaves
//
// Files appear whole: written under tmp, synced, linked to their name, the
// directory synced. What is read of small objects, properties and snapshot lists
// is made durable first, so nobody acts on something a power cut takes back.
// Puts are durable one by one (RWF_DSYNC) and may be torn. A crash leaves at
// most files in tmp, a state.json or a snapshot's .json without its .vhd; all
// are ignored, and replaced or removed with their blob.
//
// # Fencing
//
// Guards are checked under a lock that the kernel gives to one machine only when
// the file system does: on NFS with a lock server two writers exclude each
// other; without one they do not, and a write that is late on its way over NFS
// is never fenced.
//
// A call on a network file system that hangs returns when the kernel does, not
// when its context ends.
package dir
