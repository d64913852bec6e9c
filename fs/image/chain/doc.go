// Package chain finds what a differencing image lies over, and reads the overlay of all.
//
// A parent is looked for where the image says (vhd: the locators and the parent's name; vhdx: the keys of the parent
// locator), and inside the store only: an absolute path of another machine is tried by its base name beside the child and
// by its tails from the root of the store, a name that leads out of the store is not followed, a symbolic link no further
// than the store. What is found counts only if it is linked: a VHD by its unique id and its time stamp, a VHDX by its
// DataWriteGuid. Anything else is a broken chain, which no retry mends: an *image.Error around image.ErrParent that names
// the field of the child, where it lies, what was found and what was expected.
//
// A Chain is a value of one moment, like the image.Table of each of its members: Changed compares two of them and so finds
// what a new leaf, a merge, a moved or a changed parent does to the disk.
//
// It reads and never writes. It may import fs/image, its rooms vhd and vhdx, and journal/extent.
package chain
