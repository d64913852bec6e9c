// Package vhd reads dynamic, differencing and fixed VHDs: from a file, or from a sealed view of one, to the block table as
// a value and the virtual disk as bytes.
//
// Source: the Virtual Hard Disk Image Format Specification 1.0. It never writes, and imports of this module only the leaves
// fs/image and journal/extent. What an image claims is checked before memory is taken for it: an opened image takes
// about three times its block table, and its sector bitmaps where they are neither empty nor full.
package vhd
