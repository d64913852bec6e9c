package pageblob

import (
	"bytes"
	"log/slog"
	"sync"
)

// counting is a log that counts its lines.
func counting() (*slog.Logger, func() int) {
	var b lockedBuffer
	return slog.New(slog.NewTextHandler(&b, nil)), b.lines
}

type lockedBuffer struct {
	// mu guards the text; nothing blocks under it.
	mu struct {
		sync.Mutex
		text bytes.Buffer
	}
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.text.Write(p)
}

func (b *lockedBuffer) lines() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Count(b.mu.text.Bytes(), []byte("\n"))
}
