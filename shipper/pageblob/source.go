package pageblob

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	recheckInterval = time.Second // between two looks at a credential's file
	maxCredential   = 64 << 10    // bytes; a file above that is not a credential
)

// source yields the current proof, and a number that changes with it.
type source struct {
	kind    Kind
	file    string // "": the proof never changes
	account string
	log     *slog.Logger
	now     func() time.Time

	// mu is held over the look at the file: small, local, and all requests need its result.
	mu struct {
		sync.Mutex
		proof   proof
		version int
		stamp   stamp
		looked  time.Time
	}
}

// stamp tells one state of a file from another.
type stamp struct {
	mtime time.Time
	size  int64
	inode uint64
}

func stampOf(info os.FileInfo) stamp {
	s := stamp{mtime: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}

// newSource resolves c; env is os.Getenv or a test's. A nil source means azidentity.
func newSource(c Credential, account string, env func(string) string, log *slog.Logger) (*source, error) {
	s := &source{kind: c.Type, file: c.File, account: account, log: log, now: time.Now}
	switch c.Type {
	case KindDefault, "":
		return s.fromEnvironment(env)
	case KindConnectionString, KindSharedKey, KindSAS:
	default:
		return nil, fmt.Errorf("%w: type %q: use default, connection_string, shared_key or sas", ErrCredential, c.Type)
	}
	if c.File == "" {
		return nil, fmt.Errorf("%w: type %s needs a file", ErrCredential, c.Type)
	}
	p, st, err := s.read()
	if err != nil {
		return nil, err
	}
	s.mu.proof, s.mu.stamp, s.mu.looked = p, st, s.now()
	return s, nil
}

func (s *source) fromEnvironment(env func(string) string) (*source, error) {
	for _, v := range environment {
		content := env(v.name)
		if content == "" {
			continue
		}
		p, err := parseProof(v.kind, content, s.account)
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", v.name, err)
		}
		s.kind, s.file, s.mu.proof = v.kind, "", p
		return s, nil
	}
	return nil, nil
}

// current returns the proof to use now and its version. At most once a second it looks whether the file has changed.
// A file that cannot be read or makes no sense (somebody is writing it) leaves the old proof in use, with a warning.
func (s *source) current() (proof, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.mu.looked) >= recheckInterval {
		s.lookLocked()
	}
	return s.mu.proof, s.mu.version
}

// changedSince reports whether the proof is another than that of version, and looks at the file to find out.
func (s *source) changedSince(version int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookLocked()
	return s.mu.version != version
}

func (s *source) lookLocked() {
	if s.file == "" {
		return
	}
	s.mu.looked = s.now()
	info, err := os.Stat(s.file)
	if err == nil && stampOf(info) == s.mu.stamp || err != nil && s.mu.stamp == (stamp{}) {
		return
	}
	p, st, err := s.read()
	if err != nil {
		s.log.Warn("credential file changed and is not usable, the old credential stays in use", "file", s.file, "error", err)
		// Looked at again when it changes once more, so that the warning is not repeated; gone is the zero stamp.
		s.mu.stamp = st
		return
	}
	s.mu.stamp = st
	if !p.equal(s.mu.proof) {
		s.mu.proof = p
		s.mu.version++
		s.log.Info("credential read again", "file", s.file)
	}
}

// read returns the file's content and the stamp of exactly that content.
func (s *source) read() (proof, stamp, error) {
	f, err := os.Open(s.file)
	if err != nil {
		return proof{}, stamp{}, fmt.Errorf("%w: %w", ErrCredential, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return proof{}, stamp{}, fmt.Errorf("%w: %w", ErrCredential, err)
	}
	st := stampOf(info)
	content, err := io.ReadAll(io.LimitReader(f, maxCredential))
	if err != nil {
		return proof{}, st, fmt.Errorf("%w: %w", ErrCredential, err)
	}
	p, err := parseProof(s.kind, string(content), s.account)
	if err != nil {
		return proof{}, st, fmt.Errorf("%s: %w", s.file, err)
	}
	return p, st, nil
}
