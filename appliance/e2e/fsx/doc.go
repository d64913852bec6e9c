// Package fsx does random operations on files at a mount, the same ones on plain files elsewhere, and wants the same
// answers and the same bytes: reads, writes, appends, truncations, all that fallocate does, shared mappings, O_DIRECT,
// copy_file_range between the files, reopening. The idea is that of fsx, the file system exerciser.
//
// Everything follows from a seed. At intervals a Checkpoint may judge what lies behind the mount: the backing file, what
// a tracker was told, a recovery point. The process that runs it must not be the one that serves the mount: it maps
// files, and a page fault stops a Go program where its server cannot go on.
package fsx
