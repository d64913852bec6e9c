package azurite

import (
	"bytes"
	"strings"
	"sync"
)

// tailBytes is how much of a process's output is kept for an error.
const tailBytes = 4096

// tail is a writer that keeps the end of what was written to it.
type tail struct {
	// mu guards the bytes; nothing blocks under it.
	mu struct {
		sync.Mutex
		kept []byte
	}
}

// Write keeps the last tailBytes; it never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.kept = append(t.mu.kept, p...)
	if over := len(t.mu.kept) - tailBytes; over > 0 {
		t.mu.kept = bytes.Clone(t.mu.kept[over:])
	}
	return len(p), nil
}

// String returns what is kept, without space around it.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.mu.kept))
}
