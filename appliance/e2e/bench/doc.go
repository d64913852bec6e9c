// Command bench measures the performance budget of DESIGN §8 and prints the table of the README.
//
// Every row is a ratio of two things measured in one run on one machine. The rows of fio are taken in rounds: each
// round runs every variant for a few seconds, in an order that is balanced, and the row is the median over the rounds of
// the ratio inside a round. So a load from outside, a clock that drifts and a disk that fills its cache hit both sides;
// what they still do shows in the smallest and largest ratio, which are printed too.
//
// It needs root, fio, qemu-storage-daemon and mkfs.ext4, and about 8 GiB below -dir. Loads come from fio or from the
// commands of the appliance; what an appliance costs is read where nobody can tell it otherwise: at the block device of
// its state directory, in /proc, at the server it ships to.
package main
