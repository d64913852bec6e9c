// Package vhdx reads fixed, dynamic and differencing VHDXs: from a file, or from a sealed view of one, to the block table
// as a value and the virtual disk as bytes. A log that was left behind is replayed in memory; a file that is read is never
// written. A Writer makes a new dynamic image in a file of its own, front to back.
//
// Source: [MS-VHDX], the Virtual Hard Disk v2 (VHDX) File Format. It imports of this module only the leaves fs/image and
// journal/extent. What an image claims is checked before memory is taken for it: an opened image takes about three times
// its block table, its log once, and the sector bitmaps of blocks that are partly there.
package vhdx
