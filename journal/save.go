package journal

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

const (
	savedSuffix = ".saved"
	saveRun     = 256 // blocks saved at once: one claim, one read, one write
	shardCount  = 64
	wordBlocks  = 64 // blocks of a shard's map entry
)

// shard holds the blocks of some words that are being saved or are held.
type shard struct {
	mu struct { // no I/O
		sync.Mutex
		claimed, held map[int64]uint64 // by word of 64 blocks
	}
	done sync.Cond // a claim ended
}

type shards [shardCount]shard

func (t *shards) init() {
	for i := range t {
		t[i].mu.claimed, t[i].mu.held = make(map[int64]uint64), make(map[int64]uint64)
		t[i].done.L = &t[i].mu
	}
}

func (t *shards) of(word int64) *shard { return &t[word%shardCount] }

// words calls fn for each word of 64 blocks that r touches, with r's part of it.
func words(r blockRange, fn func(word int64, part blockRange)) {
	for part := range r.Split(wordBlocks) {
		fn(int64(part.Start)/wordBlocks, part)
	}
}

func bitsOf(part blockRange) uint64 {
	n := uint(part.Len())
	return ^uint64(0) >> (64 - n) << (uint(part.Start) % wordBlocks)
}

// touches says whether a block of r is on the capture list, before it is fixed.
func (sd *SealedDisk) touches(r blockRange) bool {
	return sd.whole.Load() || sd.changes.Any(r) || sd.extra.Load().Overlaps(r)
}

// keep saves the blocks of r that the capture still wants, or gives them up,
// and waits for others that are saving some of r.
func (sd *SealedDisk) keep(r blockRange, wide bool) {
	if pending := sd.pending.Load(); pending.Any(r) && !sd.s.ended.Load() && !sd.s.Voided() {
		if wide {
			sd.giveUp(r)
		} else {
			for run := range pending.Ranges(r, saveRun) {
				sd.save(run)
			}
		}
	}
	// The count is raised before a bit is cleared: whoever finds a bit cleared by
	// a writer that is still saving finds the count too.
	if sd.claims.Load() != 0 {
		sd.awaitClaims(r)
	}
}

// giveUp takes r from the list unsaved: the capture reads the live bytes.
func (sd *SealedDisk) giveUp(r blockRange) {
	sd.saving.RLock() // as in save
	defer sd.saving.RUnlock()
	sd.s.tear()
	sd.pending.Load().Clear(r)
}

func (sd *SealedDisk) save(run blockRange) {
	sd.saving.RLock() // the end of the epoch waits for this
	defer sd.saving.RUnlock()
	if sd.s.ended.Load() {
		return
	}
	sd.claims.Add(1)
	defer sd.claims.Add(-1)
	claimed := sd.claim(run)
	if len(claimed) == 0 {
		return
	}
	sd.s.vm.j.hook(AfterBlocksClaimed)
	for _, r := range claimed {
		err := sd.copyOut(r)
		if err != nil {
			sd.s.tear()
		}
		sd.unclaim(r, err == nil)
	}
	sd.s.vm.j.hook(AfterBlocksSaved)
}

// claim moves the wanted blocks of run to claimed and returns those it got.
func (sd *SealedDisk) claim(run blockRange) []blockRange {
	var got extent.Set[extent.FileBlock]
	pending := sd.pending.Load()
	words(run, func(word int64, part blockRange) {
		sh := sd.shards.of(word)
		sh.mu.Lock()
		defer sh.mu.Unlock()
		for b := part.Start; b < part.End; b++ {
			if pending.ClearOne(b) {
				sh.mu.claimed[word] |= 1 << (b % wordBlocks)
				got.Add(blockRange{Start: b, End: b + 1})
			}
		}
	})
	return got.Ranges()
}

// unclaim ends the claims of r: the blocks are held, or lost.
func (sd *SealedDisk) unclaim(r blockRange, held bool) {
	words(r, func(word int64, part blockRange) {
		sh, m := sd.shards.of(word), bitsOf(part)
		sh.mu.Lock()
		defer sh.mu.Unlock()
		if sh.mu.claimed[word] &^= m; sh.mu.claimed[word] == 0 {
			delete(sh.mu.claimed, word)
		}
		if held {
			sh.mu.held[word] |= m
		}
		sh.done.Broadcast()
	})
}

// awaitClaims returns when no block of r is claimed. Nobody holds a claim while
// waiting for another's.
func (sd *SealedDisk) awaitClaims(r blockRange) {
	words(r, func(word int64, part blockRange) {
		sh, m := sd.shards.of(word), bitsOf(part)
		sh.mu.Lock()
		defer sh.mu.Unlock()
		for sh.mu.claimed[word]&m != 0 {
			sh.done.Wait()
		}
	})
}

// isHeld waits while block b is claimed and says whether it is held.
func (sd *SealedDisk) isHeld(b extent.FileBlock) bool {
	word := int64(b) / wordBlocks
	sh, m := sd.shards.of(word), uint64(1)<<(b%wordBlocks)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for sh.mu.claimed[word]&m != 0 {
		sh.done.Wait()
	}
	return sh.mu.held[word]&m != 0
}

// taken forgets a held block: it was read.
func (sd *SealedDisk) taken(b extent.FileBlock) {
	word := int64(b) / wordBlocks
	sh := sd.shards.of(word)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.mu.held[word] &^= 1 << (b % wordBlocks); sh.mu.held[word] == 0 {
		delete(sh.mu.held, word)
	}
}

// heldBlocks counts what is held; for tests and checks.
func (sd *SealedDisk) heldBlocks() (n int) {
	for i := range sd.shards {
		sh := &sd.shards[i]
		sh.mu.Lock()
		for _, m := range sh.mu.held {
			n += bits.OnesCount64(m)
		}
		sh.mu.Unlock()
	}
	return n
}

// errSavedLimit: saving more would exceed the epoch's share of the quota.
var errSavedLimit = errors.New("saved blocks reached their limit")

var saveBuffers = sync.Pool{New: func() any { b := make([]byte, saveRun*extent.BlockSize); return &b }}

// copyOut saves blocks r, at most saveRun, before they are overwritten.
func (sd *SealedDisk) copyOut(r blockRange) error {
	n := r.Bytes()
	if sd.s.saved.Add(n) > sd.s.limit {
		sd.s.saved.Add(-n)
		return errSavedLimit
	}
	buf := saveBuffers.Get().(*[]byte)
	defer saveBuffers.Put(buf)
	p := (*buf)[:n]
	err := readFull(sd.Disk.file, p, r.Offset())
	if err == nil {
		err = sd.Disk.saved.writeAt(p, r.Offset())
	}
	if err != nil {
		sd.s.saved.Add(-n)
		return fmt.Errorf("save blocks %v of %s: %w", r, sd.Disk.Name(), err)
	}
	sd.s.vm.j.stats.saved.Add(n)
	return nil
}

// readFull fills p from r at off; past the end of the file it is zeros.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}

// savedFile is the sparse file of one disk's saved blocks, block n at byte
// n × 4096. It is never synced: if the host dies, so does the epoch.
type savedFile struct {
	mu struct { // guards f and its making; writes and reads go on without it
		sync.Mutex
		path string
		f    *os.File
	}
}

var errNoSaved = errors.New("no directory for saved blocks")

func (s *savedFile) open(dir, disk string) {
	if dir != "" {
		s.mu.path = filepath.Join(dir, disk+savedSuffix)
	}
}

// file returns the open file, made at the first save.
func (s *savedFile) file() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.f != nil {
		return s.mu.f, nil
	}
	if s.mu.path == "" {
		return nil, errNoSaved
	}
	f, err := os.OpenFile(s.mu.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	s.mu.f = f
	return f, err
}

func (s *savedFile) writeAt(p []byte, off int64) error {
	f, err := s.file()
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, off)
	return err
}

func (s *savedFile) readAt(p []byte, off int64) error {
	f, err := s.file()
	if err != nil {
		return err
	}
	_, err = f.ReadAt(p, off) // a short file is an error: what is held was written
	return err
}

// empty frees the space. The caller sees to it that nobody reads or writes.
func (s *savedFile) empty() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.f == nil {
		return nil
	}
	return s.mu.f.Truncate(0)
}

func (s *savedFile) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.mu.f
	if s.mu.f = nil; f == nil {
		return nil
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
