package retry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"syscall"
	"testing"
)

func TestDescribe(t *testing.T) {
	for _, c := range []struct {
		err   error
		class Class
		code  string
	}{
		{context.Canceled, Recoverable, "cancelled"},
		{context.DeadlineExceeded, Recoverable, "timeout"},
		{os.ErrDeadlineExceeded, Recoverable, "timeout"},
		{io.ErrUnexpectedEOF, Recoverable, "connection-closed"},
		{net.ErrClosed, Recoverable, "connection-closed"},
		{os.ErrClosed, Bug, "file-closed"},
		{os.ErrPermission, NonRecoverable, "permission"},
		{os.ErrNotExist, NonRecoverable, "not-found"},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, Recoverable, "disk-full"},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, NonRecoverable, "permission"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, Recoverable, "connection-refused"},
		{&net.OpError{Op: "read", Err: errors.New("odd")}, Recoverable, "network"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}, Recoverable, "dns-no-such-host"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{IsTimeout: true}}, Recoverable, "dns"},
		{&tls.CertificateVerificationError{Err: errors.New("expired")}, NonRecoverable, "tls-certificate"},
		{x509.UnknownAuthorityError{}, NonRecoverable, "tls-certificate"},
		{tls.RecordHeaderError{}, NonRecoverable, "tls-protocol"},
		{syscall.EINVAL, Bug, "invalid-argument"},
		{syscall.EXDEV, Recoverable, CodeUnclassified},
		{errors.New("never seen"), Recoverable, CodeUnclassified},
		{&answerError{class: Bug, code: "own"}, Bug, "own"},
		{fmt.Errorf("around: %w", &answerError{class: NonRecoverable, code: "own"}), NonRecoverable, "own"},
	} {
		err := fmt.Errorf("wrapped: %w", c.err)
		class, code, cause, action := Describe(err)
		if class != c.class || code != c.code || cause != err.Error() || action == "" {
			t.Errorf("%v: %v, %q, %q, %q; want %v, %q", err, class, code, cause, action, c.class, c.code)
		}
		if Classify(err) != class {
			t.Errorf("%v: Classify differs from Describe", err)
		}
	}
}

func TestDescribeNil(t *testing.T) {
	if class, code, cause, action := Describe(nil); class != Recoverable || code+cause+action != "" {
		t.Errorf("nil: %v %q %q %q", class, code, cause, action)
	}
}

// TestI12_ErrnoCodes: every code of the table is kebab-case, and what an operator
// must mend says how.
func TestI12_ErrnoCodes(t *testing.T) {
	shape := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	for errno, v := range errnos {
		if !shape.MatchString(v.code) {
			t.Errorf("%v: code %q", errno, v.code)
		}
		if v.class == NonRecoverable && v.action == "" {
			t.Errorf("%v: non-recoverable without an action", errno)
		}
	}
}

func TestClassNames(t *testing.T) {
	for c, want := range map[Class]string{Recoverable: "recoverable", NonRecoverable: "non-recoverable", Bug: "bug"} {
		if c.String() != want {
			t.Errorf("%d: %q, want %q", c, c, want)
		}
	}
}
