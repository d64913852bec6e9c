package fs

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A mount under a deep queue always has a request that waits; it answers as long as others are read.
func TestAnswersUnderADeepQueue(t *testing.T) {
	m := newMortalStore(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := w.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	s := &Server{store: m.store, device: r}
	if err := s.Answers(); !errors.Is(err, errNotRead) {
		t.Errorf("nothing is read: %v", err)
	}
	read := time.AfterFunc(answerPause, func() { m.tree.get(fuse.FUSE_ROOT_ID) })
	defer read.Stop()
	if err := s.Answers(); err != nil {
		t.Error(err)
	}
}
