// Package control is the door into a running appliance: JSON over HTTP on a unix socket, its client, its server, and the
// documents that `vhdrelay status --json` and `points --json` print. Fields may be added to those, none renamed: scripts
// rely on them.
//
// The appliance implements Backend; the package knows nothing of mounts, journals or targets. Long calls answer with a
// stream of newline-delimited JSON: progress while it lasts, then one line that holds the result or the error. Errors
// cross the socket whole, as *Error, with the exit code that the command will end with.
//
// The socket's mode is 0600: whoever may open it may do everything. A stale socket file is removed only if nobody
// answers on it; a second appliance is refused.
package control
