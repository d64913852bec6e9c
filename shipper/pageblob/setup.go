package pageblob

import "github.com/vhdrelay/vhdrelay/shipper/retry"

// SetupError is an error of Open about what the operator configured: nothing was sent. It wraps ErrURL, ErrCredential,
// or the error of reading a file.
type SetupError struct {
	Code   string // stable
	Action string // what to do, a sentence
	Err    error
}

func (e *SetupError) Error() string { return e.Err.Error() }

// Unwrap makes errors.Is find the sentinels.
func (e *SetupError) Unwrap() error { return e.Err }

// RetryClass, ErrorCode and ErrorAction are what package retry asks of an error. Time mends none of them.
func (e *SetupError) RetryClass() retry.Class { return retry.NonRecoverable }

// ErrorCode is Code.
func (e *SetupError) ErrorCode() string { return e.Code }

// ErrorAction is Action.
func (e *SetupError) ErrorAction() string { return e.Action }
