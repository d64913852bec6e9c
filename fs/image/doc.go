// Package image knows disk image formats: what a file is, how large the virtual disk in it is, and which file block
// holds which disk block.
//
// It is the only place where a FileOffset becomes a DiskOffset. It reads and never writes: FixedFooter returns bytes.
// Sources: the Virtual Hard Disk Image Format Specification 1.0 and QEMU's block/vpc.c as a second reader.
//
// Protected are raw images and fixed VHDs. Dynamic and differencing VHDs and VHDX are recognised by content and
// answered with ErrUnsupported, so that a copy of a *file* is never taken for a copy of a *disk*.
package image
