// Package badgerkv is the journal's store on Badger.
package badgerkv

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Sizes, bytes. The journal's content is a few MiB; the defaults would take
// hundreds of memory for it.
const (
	memtable = 8 << 20 // two of them, and their logs on disk twice that; a batch may have 15 % of it
	valueLog = 1 << 20 // unused: every value fits the tables
	table    = 2 << 20
)

// Store is a kv.Store in one directory.
type Store struct {
	dir       string
	log       *slog.Logger
	closeWait time.Duration // see shutLocked
	said      *said

	apply sync.Mutex // one commit at a time; held over its I/O

	mu struct { // write-held over opening and closing the database only
		sync.RWMutex
		db      *badger.DB // nil: it could not be opened again
		broken  error      // the last commit's; the next one opens the database anew
		closing chan error // a database that does not come to an end; it has the directory's lock
		closed  bool
	}
}

var _ kv.Store = (*Store)(nil)

// Open opens or makes the store in dir, which one process may have open.
// Badger's messages go to log; nil discards them.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{dir: dir, log: log, closeWait: closeWait, said: newSaid(time.Now)}
	db, err := s.open()
	if err != nil {
		return nil, fmt.Errorf("open journal store %s: %w", dir, err)
	}
	s.mu.db = db
	return s, nil
}

// open opens the database where there is room for what that writes.
func (s *Store) open() (*badger.DB, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	if err := room(s.dir); err != nil {
		return nil, err
	}
	if err := rehearse(s.dir); err != nil {
		return nil, err
	}
	if err := removeEmptyLogs(s.dir); err != nil {
		return nil, err
	}
	if err := proven(s.dir); err != nil {
		return nil, err
	}
	db, err := s.attempt()
	if err != nil {
		return nil, err
	}
	if err := reserve(s.dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// attempt opens the database; openings that end the process are counted.
func (s *Store) attempt() (*badger.DB, error) {
	if err := beginOpening(s.dir); err != nil {
		return nil, err
	}
	db, err := badger.Open(s.options())
	if err != nil {
		return nil, errors.Join(err, endOpening(s.dir))
	}
	if err := endOpening(s.dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// options sets every choice that durability or size depends on, whatever the
// defaults are. SyncWrites syncs each commit; db.Sync is no substitute, it
// leaves a rotated memtable's log out.
func (s *Store) options() badger.Options {
	return badger.DefaultOptions(s.dir).
		WithSyncWrites(true).
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithMemTableSize(memtable).
		WithNumMemtables(2).
		WithBaseTableSize(table).
		WithBaseLevelSize(2 * table).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(8).
		WithNumCompactors(2).
		WithValueThreshold(1 << 20).
		WithValueLogFileSize(valueLog).
		WithMetricsEnabled(false).
		WithLogger(logger{s.log, s.said})
}

// Get implements kv.Store.
func (s *Store) Get(key []byte) (value []byte, err error) {
	err = s.view(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) || errors.Is(err, badger.ErrEmptyKey) {
			return kv.ErrNotFound
		}
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	return value, err
}

// Scan implements kv.Store.
func (s *Store) Scan(prefix []byte, fn func(key, value []byte) error) error {
	return s.view(func(txn *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix = prefix
		it := txn.NewIterator(opts)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			value, err := it.Item().ValueCopy(nil)
			if err != nil {
				return err
			}
			if err := fn(it.Item().KeyCopy(nil), value); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Store) view(fn func(*badger.Txn) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.mu.closed {
		return kv.ErrClosed
	}
	if s.mu.db == nil {
		return fmt.Errorf("journal store is not open: %w", s.mu.broken)
	}
	return s.mu.db.View(fn)
}

// Apply implements kv.Store. Commits go one at a time: after one has failed its
// log may have a hole at which a replay would stop, so nothing may be
// acknowledged behind it before the database was opened anew.
func (s *Store) Apply(b *kv.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	s.apply.Lock()
	defer s.apply.Unlock()
	if err := s.mend(); err != nil {
		return err
	}
	if b.Len() == 0 {
		return nil
	}
	if err := room(s.dir); err != nil {
		return err // nothing was written: the database stays as it is
	}
	s.mu.RLock()
	err := commit(s.mu.db, b)
	s.mu.RUnlock()
	if err != nil {
		s.mu.Lock()
		s.mu.broken = err
		s.mu.Unlock()
		return fmt.Errorf("commit %d operations: %w", b.Len(), err)
	}
	return nil
}

func commit(db *badger.DB, b *kv.Batch) error {
	txn := db.NewTransaction(true)
	defer txn.Discard()
	for _, op := range b.Ops() {
		var err error
		if op.Delete {
			err = txn.Delete(append([]byte(nil), op.Key...))
		} else {
			err = txn.Set(append([]byte(nil), op.Key...), append([]byte(nil), op.Value...))
		}
		if err != nil {
			return err
		}
	}
	return txn.Commit()
}

// mend opens the database anew after a failed commit: the replay writes what
// the old log holds into a synced table.
func (s *Store) mend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return kv.ErrClosed
	}
	if s.mu.broken == nil {
		return nil
	}
	if err := room(s.dir); err != nil {
		return err
	}
	if err := s.shutLocked(); errors.Is(err, ErrClosing) {
		return err
	} else if err != nil {
		logger{s.log, s.said}.Warningf("closing the journal store: %v", err)
	}
	db, err := s.open()
	if err != nil {
		s.mu.broken = err
		return fmt.Errorf("open journal store %s again: %w", s.dir, err)
	}
	s.mu.db, s.mu.broken = db, nil
	return nil
}

// Close implements kv.Store.
func (s *Store) Close() error {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil
	}
	s.mu.closed = true
	if s.mu.db == nil && s.mu.closing == nil {
		return nil
	}
	if err := room(s.dir); err != nil {
		return fmt.Errorf("journal store stays open, its logs are replayed at the next start: %w", err) // closing writes a table
	}
	if err := s.shutLocked(); err != nil {
		return fmt.Errorf("close journal store: %w", err)
	}
	return nil
}
