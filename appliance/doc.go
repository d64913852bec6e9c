// Package appliance composes the stages: it mounts the stores through fs, gives every disk a tracker of journal, runs the
// loops of shipper and resync for each VM, and answers on the control socket. It owns configuration, HTTP and the command
// line, and it alone knows the life cycle of anything: no goroutine of the stages outlives what appliance started it with.
//
// It may import every other package; none imports it. Its sub-packages: config reads the YAML file, control is the socket's
// two ends, cli the command, cmd/vhdrelay the program, repotest the rules of the repository as tests.
//
// Its own invariants are I7 (it stops the writer that has lost a VM), I9 (a broken part is a state, never a guest's error)
// and I12 (every failure reaches status, log and metrics with class, code, cause and next action). It keeps no file of its
// own beyond the control socket and its lock, so a crash leaves a stale socket, which the next start replaces.
package appliance
