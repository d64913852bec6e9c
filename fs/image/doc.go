// Package image knows disk image formats: what a file is, how large the virtual disk in it is, and which file block
// holds which disk block.
//
// It is the only place where a FileOffset becomes a DiskOffset. It reads and never writes: FixedFooter returns bytes.
// Sources: the Virtual Hard Disk Image Format Specification 1.0 and QEMU's block/vpc.c as a second reader.
//
// Two more rooms, vhd and vhdx, read images whose disk is behind a block table. What they have in common is here: the
// Table, a value that says where each sector comes from and, compared with an earlier one, which blocks of the disk may
// read differently (Table.Changed); and the Disk, which reads the bytes.
//
// A Table can be kept: AppendBinary and DecodeTable are the format (codec.go), strict, versioned and fuzzed. The Layout
// converts blocks and reads a disk through a table that need not be the image's any more.
//
// Probe knows raw images and fixed VHDs, and answers everything else with ErrUnsupported, so that a copy of a *file* is
// never taken for a copy of a *disk*. Room formats opens what has a block table: its Probe says what is protected. Room
// chain finds what a differencing image lies over, inside one store, and compares two moments of such a chain. Room vhdx also
// writes: a new dynamic image, front to back, for an export.
package image
