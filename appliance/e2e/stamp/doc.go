// Package stamp writes blocks that say who wrote them and when, and judges an image made of such blocks.
//
// It is the oracle of the end-to-end tests. It knows the outside only: which write was sent and which was answered, on
// one logical clock over all writers and disks. A recovery point is a true state of a VM exactly when there is one cut
// through that history that explains every block of every disk (DESIGN §2, I2):
//
//   - every block is a version that was written there, whole and unharmed, or the one it had in the beginning;
//   - a write is in the cut with all of its blocks or with none (it is one FUSE request);
//   - if a write is in the cut, every write that was answered before it was sent is in the cut too, on whatever disk;
//   - every write answered before the seal was asked for is in the cut, none that was sent after it was answered is;
//   - a later point never shows an older version.
//
// A version of a block is in the cut if it is visible or a later version of the block is. Writes that overlap are never
// in flight together (Log.Begin refuses), so the versions of a block have one order.
//
// A crash ends a history. What the images hold then is the beginning of the next (Log.Next): a write that was in flight
// may be there, absent or torn, and nothing but the image says which.
package stamp
