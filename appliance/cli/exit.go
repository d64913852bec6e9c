package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// usageError is a command line that cannot be meant.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

func usagef(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// exitTable is the one place where errors become exit codes. The first match counts; an error without one ends in
// ExitFailed.
var exitTable = []func(error) (exit control.Exit, match bool){
	func(err error) (control.Exit, bool) {
		var e silent
		ok := errors.As(err, &e)
		return control.Exit(e), ok
	},
	func(err error) (control.Exit, bool) {
		var e usageError
		return control.ExitUsage, errors.As(err, &e)
	},
	func(err error) (control.Exit, bool) {
		var e *control.Error
		if errors.As(err, &e) && e.Exit != control.ExitDone {
			return e.Exit, true
		}
		return 0, false
	},
	func(err error) (control.Exit, bool) { return control.ExitConfig, errors.Is(err, config.ErrInvalid) },
}

// exitOf returns the exit code of an error.
func exitOf(err error) control.Exit {
	if err == nil {
		return control.ExitDone
	}
	for _, row := range exitTable {
		if exit, ok := row(err); ok {
			return exit
		}
	}
	return control.ExitFailed
}

// silent is an exit code without a complaint: the output has said it all.
type silent control.Exit

func (s silent) Error() string { return fmt.Sprintf("exit %d", int(s)) }

// meanings is what the help says of each exit code.
var meanings = map[control.Exit]string{
	control.ExitDone:        "done",
	control.ExitFailed:      "failed; the message says why",
	control.ExitUsage:       "the command line is wrong",
	control.ExitConfig:      "the configuration is missing or wrong",
	control.ExitUnreachable: "no appliance answers on the control socket",
	control.ExitNotFound:    "no such VM, disk, point or file",
	control.ExitRefused:     "refused in this state; the message says which and what to do",
	control.ExitDiffers:     "verification found differences",
	control.ExitWarning:     "the worst health is Warning (with --check)",
	control.ExitCritical:    "the worst health is Critical (with --check)",
}

// exitStatus is the EXIT STATUS section of a command's help. Done, failed and usage go without saying for all of them.
func exitStatus(more ...control.Exit) string {
	var b strings.Builder
	b.WriteString("EXIT STATUS\n")
	for _, exit := range append([]control.Exit{control.ExitDone, control.ExitFailed, control.ExitUsage}, more...) {
		fmt.Fprintf(&b, "  %2d  %s\n", exit, meanings[exit])
	}
	return strings.TrimRight(b.String(), "\n")
}

// complain prints an error the way an operator needs it: what, and what next. A configuration's errors stand alone, one a
// line, so that editors find the places.
func complain(w io.Writer, err error) {
	var quiet silent
	if errors.As(err, &quiet) {
		return
	}
	if errors.Is(err, config.ErrInvalid) {
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintf(w, "vhdrelay: %v\n", err)
	var e *control.Error
	if errors.As(err, &e) && e.Action != "" {
		fmt.Fprintf(w, "next: %s\n", e.Action)
	}
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(w, "next: vhdrelay help, or --help after any command")
	}
}
