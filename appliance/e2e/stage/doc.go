// Package stage holds the long tests of the appliance: a guest's load, random operations, kills, an outage of the target, a small quota,
// formats, a sparse disk, power cuts. `make acceptance` runs them in full, the tests of appliance/e2e in small.
//
// A stage uses the appliance as an operator does (package rig) and judges points with the oracle that knows the outside
// only (package stamp). It needs root, /dev/fuse, loop devices and the tools that `make tools` installs.
package stage
