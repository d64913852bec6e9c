// Package rig runs the appliance as an operator does: the binary, its configuration, its command line, its mount. It
// starts and kills processes, stands between the appliance and its target, makes and attacks file systems, and looks
// into nothing that is not part of the operator's contract (DESIGN §7).
//
// What a Rig starts it also ends. A program that dies leaves mounts and loop devices behind; New detaches what it finds
// below its directory, so that the next run can begin.
package rig
