// Package fs serves the directory of a store at a mount point and tells a Tracker of every change of a disk before and
// after it happens.
//
// It owns go-fuse, as a RawFileSystem of its own: node ids are the backing inode numbers, opens have no handles, WRITE
// is taken where its sync flags can still be seen. It may import journal/extent and fs/image, and no other stage: what
// it needs of them is Volumes and Tracker.
//
// Invariants it keeps: I1, no byte of a disk changes outside of Begin and End; I9, only a refusing Tracker fails a
// change, with EIO; and, for I2 and I3, one FUSE request is one change. Verbs lists what each request may do.
//
// A crash leaves a mount that waits for the next process, if somebody keeps its connection (Options.Keep); else one that
// answers ENOTCONN, which the next Mount detaches. The mount point stays closed. README.md has the details.
package fs
