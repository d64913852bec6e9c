package retry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	iofs "io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// Classified is an error that knows its class. A type implements the four
// interfaces below as far as it can; the outermost error of the chain that has
// an answer gives it.
type Classified interface{ RetryClass() Class }

// Coded is an error with a stable code: kebab-case, never reused with another
// meaning, for status, log and metrics.
type Coded interface{ ErrorCode() string }

// Advised is an error that knows what to do next, in a sentence.
type Advised interface{ ErrorAction() string }

// Delayed is an error whose sender said how long to wait; 0: it did not.
type Delayed interface{ RetryDelay() time.Duration }

// Codes that this package itself acts on. CodeUnclassified is the code of an
// error nobody knows: a gap in the tables of this package.
const (
	CodeUnclassified = "unclassified"
	CodeThrottled    = "throttled"
)

type verdict struct {
	class  Class
	code   string
	action string
}

// Describe tells what an error means (DESIGN I12). code is stable, cause is the
// text of the error, action what comes next. A nil error has an empty code.
func Describe(err error) (class Class, code, cause, action string) {
	if err == nil {
		return Recoverable, "", "", ""
	}
	v := judge(err)
	if c, ok := answer[Classified](err); ok {
		v.class = c.RetryClass()
	}
	if c, ok := answer[Coded](err); ok && c.ErrorCode() != "" {
		v.code = c.ErrorCode()
	}
	if a, ok := answer[Advised](err); ok && a.ErrorAction() != "" {
		v.action = a.ErrorAction()
	}
	if v.action == "" {
		v.action = DefaultAction(v.class)
	}
	return v.class, v.code, err.Error(), v.action
}

// Classify is the class of Describe.
func Classify(err error) Class {
	class, _, _, _ := Describe(err)
	return class
}

// answer finds the outermost error of the chain that implements T; unlike
// errors.AsType it takes interfaces that are not errors themselves.
func answer[T any](err error) (T, bool) {
	var t T
	ok := errors.As(err, &t)
	return t, ok
}

// DefaultAction is the next action where nobody knows a better one.
func DefaultAction(c Class) string {
	switch c {
	case Recoverable:
		return "nothing to do: it is tried again"
	case NonRecoverable:
		return "mend the cause, then resume the VM"
	}
	return "report it with the log: this is a defect of vhdrelay"
}

// judge sorts the errors of the operating system, the network and the context.
// The order matters: the specific types wrap the general ones.
func judge(err error) verdict {
	if errors.Is(err, context.Canceled) {
		return general["cancelled"]
	}
	if v, ok := judgeTLS(err); ok {
		return v
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return judgeDNS(dns)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		if v, ok := errnos[errno]; ok {
			return v
		}
	}
	return judgeGeneral(err)
}

func judgeTLS(err error) (verdict, bool) {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return general["tls-certificate"], true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return general["tls-certificate"], true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return general["tls-protocol"], true
	}
	return verdict{}, false
}

// judgeDNS: a name that does not exist stays recoverable, because resolvers say
// so during outages as well; the code tells the two apart.
func judgeDNS(err *net.DNSError) verdict {
	if err.IsNotFound {
		return general["dns-no-such-host"]
	}
	return general["dns"]
}

func judgeGeneral(err error) verdict {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return general["timeout"]
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed):
		return general["connection-closed"]
	case errors.Is(err, iofs.ErrClosed):
		return general["file-closed"]
	case errors.Is(err, iofs.ErrPermission):
		return errnos[syscall.EACCES]
	case errors.Is(err, iofs.ErrNotExist):
		return errnos[syscall.ENOENT]
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return general["network"]
	}
	return general[CodeUnclassified]
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// general are the verdicts on errors that are no errno, by code.
var general = byCode(
	verdict{Recoverable, "cancelled", "nothing to do: the work was stopped on request"},
	verdict{NonRecoverable, "tls-certificate", "check target.url, target.ca_file and the clock"},
	verdict{NonRecoverable, "tls-protocol", "check target.url: the other side does not speak TLS"},
	verdict{Recoverable, "dns-no-such-host", "check the host name in target.url; it is tried again"},
	verdict{Recoverable, "dns", "check the name servers of this host; it is tried again"},
	verdict{Recoverable, "timeout", ""},
	verdict{Recoverable, "connection-closed", ""},
	verdict{Bug, "file-closed", ""},
	verdict{Recoverable, "network", ""},
	verdict{Recoverable, CodeUnclassified, ""},
)

func byCode(list ...verdict) map[string]verdict {
	m := map[string]verdict{}
	for _, v := range list {
		m[v.code] = v
	}
	return m
}

var errnos = map[syscall.Errno]verdict{
	syscall.ENOSPC:       {Recoverable, "disk-full", "free space on the file system named in the error; it is tried again"},
	syscall.EDQUOT:       {Recoverable, "disk-quota", "raise the quota or free space; it is tried again"},
	syscall.ENOMEM:       {Recoverable, "memory-low", "free memory on this host; it is tried again"},
	syscall.EMFILE:       {Recoverable, "too-many-files", "raise LimitNOFILE of the service; it is tried again"},
	syscall.ENFILE:       {Recoverable, "too-many-files", "raise fs.file-max of this host; it is tried again"},
	syscall.EIO:          {Recoverable, "io-error", "look into the kernel log for the device; it is tried again"},
	syscall.ESTALE:       {Recoverable, "stale-handle", "check that the network file system is mounted; it is tried again"},
	syscall.EAGAIN:       {Recoverable, "busy", ""},
	syscall.EINTR:        {Recoverable, "busy", ""},
	syscall.EBUSY:        {Recoverable, "busy", ""},
	syscall.ECONNREFUSED: {Recoverable, "connection-refused", "check that the target is up and target.url is right; it is tried again"},
	syscall.ECONNRESET:   {Recoverable, "connection-closed", ""},
	syscall.ECONNABORTED: {Recoverable, "connection-closed", ""},
	syscall.EPIPE:        {Recoverable, "connection-closed", ""},
	syscall.ENOTCONN:     {Recoverable, "connection-closed", ""},
	syscall.ETIMEDOUT:    {Recoverable, "timeout", ""},
	syscall.ENETUNREACH:  {Recoverable, "network-unreachable", "check the network of this host; it is tried again"},
	syscall.ENETDOWN:     {Recoverable, "network-unreachable", "check the network of this host; it is tried again"},
	syscall.EHOSTUNREACH: {Recoverable, "host-unreachable", "check the route to the target; it is tried again"},
	syscall.EHOSTDOWN:    {Recoverable, "host-unreachable", "check that the target is up; it is tried again"},
	syscall.EACCES:       {NonRecoverable, "permission", "give the service access to what the error names, then resume the VM"},
	syscall.EPERM:        {NonRecoverable, "permission", "give the service access to what the error names, then resume the VM"},
	syscall.EROFS:        {NonRecoverable, "read-only", "mount the file system writable, then resume the VM"},
	syscall.ENOENT:       {NonRecoverable, "not-found", "restore what the error names, or check the configured path, then resume the VM"},
	syscall.ENOTDIR:      {NonRecoverable, "not-found", "check the configured path, then resume the VM"},
	syscall.EFBIG:        {NonRecoverable, "file-too-big", "use a file system that takes files of this size, then resume the VM"},
	syscall.EOPNOTSUPP:   {NonRecoverable, "not-supported", "use a file system that supports the operation, then resume the VM"},
	syscall.EBADF:        {Bug, "file-closed", ""},
	syscall.EINVAL:       {Bug, "invalid-argument", ""},
}
