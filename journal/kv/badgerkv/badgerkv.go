// Package badgerkv is the journal's store on Badger.
package badgerkv

import (
	"log/slog"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Open opens or makes the store in dir.
func Open(dir string, log *slog.Logger) (kv.Store, error) { return nil, kv.ErrClosed }
