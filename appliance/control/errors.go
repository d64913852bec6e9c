package control

import (
	"context"
	"errors"
	"fmt"
)

// Exit is an exit code of the vhdrelay command. The numbers are part of the operator's contract and never change.
type Exit int

// The exit codes.
const (
	ExitDone        Exit = 0
	ExitFailed      Exit = 1
	ExitUsage       Exit = 2
	ExitConfig      Exit = 3
	ExitUnreachable Exit = 4
	ExitNotFound    Exit = 5
	ExitRefused     Exit = 6
	ExitDiffers     Exit = 7
	ExitWarning     Exit = 10
	ExitCritical    Exit = 11
)

// Code is a stable name of an error, for scripts.
type Code string

// The codes that this package and the command line use. They never change, underscores included. The appliance adds its own
// (store-in-use, nothing-to-protect, …) and, for a failure that status and log know too, uses the kebab-case code of these.
const (
	CodeInternal    Code = "internal"
	CodeUsage       Code = "usage"
	CodeUnreachable Code = "daemon_unreachable"
	CodeNotFound    Code = "not_found"
	CodeRefused     Code = "refused"
	CodeDiffers     Code = "differs"
	CodeRunning     Code = "already_running"
	// CodeInterrupted: the appliance went away in the middle of its answer.
	CodeInterrupted Code = "interrupted"
)

// Error is an error that an operator sees: what happened, what to do, and what a script gets.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Action is the next thing to do, "" if there is nothing.
	Action string `json:"action,omitempty"`
	Exit   Exit   `json:"exit"`
	// Err is the cause, on this side of the socket only; Message names it on the other.
	Err error `json:"-"`
}

// Error returns the message; the action is printed on a line of its own by the command.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause, nil for an error that came over the socket.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an *Error of the same code, so that errors.Is(err, &Error{Code: CodeNotFound}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// NotFound returns an error with exit code 5.
func NotFound(action, format string, args ...any) *Error {
	return &Error{Code: CodeNotFound, Message: fmt.Sprintf(format, args...), Action: action, Exit: ExitNotFound}
}

// Refused returns an error with exit code 6: the state does not allow the command.
func Refused(code Code, action, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Action: action, Exit: ExitRefused}
}

// asError makes any error one that can cross the socket.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{Code: e.Code, Message: err.Error(), Action: e.Action, Exit: e.Exit}
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Code: CodeInterrupted, Message: "the appliance is stopping", Exit: ExitUnreachable,
			Action: "ask again once it is back"}
	}
	return &Error{Code: CodeInternal, Message: err.Error(), Exit: ExitFailed}
}
