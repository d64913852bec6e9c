package badgerkv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// openingFile has a byte for every opening that did not come to an end: the process died in it.
const openingFile = "OPENING"

// maxDeaths is after how many of them in a row the database is not opened again. One may be a plug that was pulled, two a
// machine that is switched on and off; Badger ends the process over what it does not understand, and so would each restart.
const maxDeaths = 3

// beginOpening notes durably that an opening begins. It refuses one that would end as the last ones did.
func beginOpening(dir string) error {
	path := filepath.Join(dir, openingFile)
	st, err := os.Stat(path)
	if err == nil && st.Size() >= maxDeaths {
		return fmt.Errorf("%w: the process ended %d times while it was opened, its last words are in the log; remove %s to try it again",
			ErrDamaged, st.Size(), path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte{'.'})
	return errors.Join(err, f.Sync(), f.Close())
}

// endOpening notes that an opening came to an end, with the database or an error. If a power cut takes that back, it is one
// death too many, and the next opening ends them.
func endOpening(dir string) error { return os.Remove(filepath.Join(dir, openingFile)) }
