// Package cli is the vhdrelay command: its flags, its output, its exit codes. What the commands do is done elsewhere, by
// the appliance behind the control socket or by the functions in Deps, which main provides; so the package can be tested
// whole without a mount or a target, and os.Exit is main's alone.
//
// Results go to standard output, progress and errors to standard error, so that output can be piped while something long
// runs. Which error ends in which exit code is one table, in exit.go.
package cli
