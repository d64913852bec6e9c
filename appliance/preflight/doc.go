// Package preflight checks what replication needs before a byte moves: the host, the state disk, the target with every
// right on a scratch blob, and each disk with its limits. A check says pass, warn or fail, and what to do next.
//
// It reads disks and writes nothing but a scratch file in the state directory and scratch blobs at the target, all of
// which it removes; what a crash leaves of them is removed by the next run. It needs no appliance, and runs beside one.
package preflight
