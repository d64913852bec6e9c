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

	// settle is how long a file that is written in place must have stayed as it is before its content is used: half of
	// a key may look like a key. One that was renamed into place is whole at once.
	settle = time.Second
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
		proof    proof
		version  int
		stamp    stamp // of the file as it was last read
		looked   time.Time
		pending  stamp     // of a file that has changed and was not read yet
		since    time.Time // when pending was seen first; zero: nothing is pending
		unusable error     // why the file as it was last read is not used, nil if it is
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
		return nil, &SetupError{Code: "credential-type", Action: "correct target.credentials.type",
			Err: fmt.Errorf("%w: type %q: use default, connection_string, shared_key or sas", ErrCredential, c.Type)}
	}
	if c.File == "" {
		return nil, &SetupError{Code: "credential-unusable", Action: "give target.credentials.file", Err: fmt.Errorf("%w: type %s needs a file", ErrCredential, c.Type)}
	}
	p, st, err := s.read()
	if err != nil {
		return nil, &SetupError{Code: "credential-unusable", Err: err,
			Action: "write the secret of the account in target.url to " + c.File + ", readable by the service alone; it is looked for again when the file changes"}
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
			return nil, &SetupError{Code: "credential-unusable", Action: "correct or unset " + v.name + " in the environment",
				Err: fmt.Errorf("environment variable %s: %w", v.name, err)}
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

// changedSince reports whether the proof is another than that of version, or is about to be, and looks at the file to
// find out. unusable is why a changed file is not used.
func (s *source) changedSince(version int) (changed bool, unusable error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookLocked()
	return s.mu.version != version || !s.mu.since.IsZero(), s.mu.unusable
}

// lookLocked reads the file again if it has changed and is whole.
func (s *source) lookLocked() {
	if s.file == "" {
		return
	}
	s.mu.looked = s.now()
	var st stamp // zero: there is no file
	if info, err := os.Stat(s.file); err == nil {
		st = stampOf(info)
	}
	if st == s.mu.stamp {
		s.mu.since = time.Time{}
		return
	}
	if s.settledLocked(st) {
		s.readLocked()
	}
}

// settledLocked tells whether nobody is writing the changed file any more.
func (s *source) settledLocked(st stamp) bool {
	if s.mu.since.IsZero() || s.mu.pending != st {
		s.mu.pending, s.mu.since = st, s.mu.looked
	}
	renamed := st.inode != s.mu.stamp.inode && st != (stamp{}) && s.mu.stamp != (stamp{})
	return renamed || s.mu.looked.Sub(s.mu.since) >= settle
}

// readLocked takes what the changed file holds. The stamp makes it look again only when the file changes once more, so
// that a warning is not repeated.
func (s *source) readLocked() {
	p, st, err := s.read()
	s.mu.stamp, s.mu.since, s.mu.unusable = st, time.Time{}, err
	switch {
	case err != nil:
		s.log.Warn("credential file changed and is not usable, the old credential stays in use", "code", "credential-unusable", "file", s.file, "cause", err,
			"action", "write the whole secret to the file; it is read again when it changes")
	case !p.equal(s.mu.proof):
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
	s.warnOfReaders(info)
	return p, st, nil
}

// warnOfReaders says when others than the file's owner may read the secret, or write another.
func (s *source) warnOfReaders(info os.FileInfo) {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		s.log.Warn("the secret may be read by others than its owner", "code", "credential-permissions", "file", s.file, "mode", fmt.Sprintf("%04o", mode),
			"action", "chmod 600 "+s.file)
	}
}
