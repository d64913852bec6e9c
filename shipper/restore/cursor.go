package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"

	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// Names of an unfinished export, beside the output.
const (
	PartialSuffix = ".partial"
	CursorSuffix  = ".partial.cursor"
)

const cursorVersion = 1

// cursor is how far an export has come, durably.
type cursor struct {
	Version int          `json:"version"`
	Of      exportID     `json:"of"`
	Done    int64        `json:"done"` // bytes of the disk that are on stable storage
	Sum     string       `json:"sum"`  // CRC-64 of them
	Proven  bool         `json:"proven"`
	sum     checksum.Sum // Sum, decoded
	path    string       // of the cursor file
}

// exportID is what makes two exports the same.
type exportID struct {
	VM     string          `json:"vm"`
	Point  catalog.PointID `json:"point"`
	UUID   string          `json:"epoch_uuid"`
	DiskID string          `json:"disk_id"`
	Sum    string          `json:"sum"`
	Size   int64           `json:"size"`
	Format string          `json:"format"`
}

// loadCursor reads it; false if there is none.
func loadCursor(path string) (cursor, bool, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, iofs.ErrNotExist) {
		return cursor{}, false, nil
	}
	if err != nil {
		return cursor{}, false, err
	}
	var c cursor
	if err := json.Unmarshal(data, &c); err != nil {
		return cursor{}, false, fmt.Errorf("%w: %s: %w", ErrCursor, path, err)
	}
	if c.Version != cursorVersion {
		return cursor{}, false, fmt.Errorf("%w: %s: version %d, this one reads %d", ErrCursor, path, c.Version, cursorVersion)
	}
	if c.sum, err = catalog.ParseSum(c.Sum); err != nil || c.Done < 0 {
		return cursor{}, false, fmt.Errorf("%w: %s: done %d, sum %q", ErrCursor, path, c.Done, c.Sum)
	}
	c.path = path
	return c, true, nil
}

// save makes it durable, old or new, never a mixture.
func (c *cursor) save() error {
	c.Version, c.Sum = cursorVersion, catalog.FormatSum(c.sum)
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return durable.WriteFile(c.path, append(data, '\n'))
}
