package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

const (
	treeKept  = 200 // files; older ones are removed
	treeWidth = 16  // directories
	treePause = 20 * time.Millisecond
)

// files writes one file after the other until ctx ends: written under another name, synced, renamed, the directory
// synced. So a file that has its name is whole. The first line names the newest transaction the database had answered.
func (x *linux) files(ctx context.Context) error {
	rng := x.env.rng(12)
	tick := time.NewTicker(treePause)
	defer tick.Stop()
	for n := int64(1); ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := writeTreeFile(x.tree.Dir, n, treeFile(rng, x.committed.Load())); err != nil {
			return fmt.Errorf("file %d of the tree: %w", n, err)
		}
		x.written.Store(n)
		if err := os.Remove(treePath(x.tree.Dir, n-treeKept)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
}

func treePath(dir string, n int64) string {
	return filepath.Join(dir, fmt.Sprintf("d%02d", n%treeWidth), fmt.Sprintf("f%08d", n))
}

// treeFile is a transaction number, a checksum of the rest, and the rest.
func treeFile(rng *rand.Rand, committed int64) []byte {
	body := make([]byte, 100+rng.IntN(60_000))
	for i := 0; i < len(body); i += 1 + rng.IntN(6) {
		body[i] = byte(rng.Uint32())
	}
	head := fmt.Appendf(nil, "%d %08x\n", committed, crc32.ChecksumIEEE(body))
	return append(head, body...)
}

func writeTreeFile(dir string, n int64, data []byte) error {
	path := treePath(dir, n)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// checkTree judges every file and returns the newest one's number. No file may name a transaction after newest.
func checkTree(dir string, newest int64) (last int64, err error) {
	first := int64(0)
	count := int64(0)
	err = filepath.WalkDir(dir, func(path string, entry iofs.DirEntry, err error) error {
		var n int64
		if err != nil || entry.IsDir() || filepath.Ext(path) == ".new" {
			return err
		}
		if k, _ := fmt.Sscanf(entry.Name(), "f%d", &n); k != 1 {
			return nil
		}
		last, count = max(last, n), count+1
		if first == 0 || n < first {
			first = n
		}
		return checkTreeFile(path, newest)
	})
	if err == nil && count > 0 && count != last-first+1 {
		err = fmt.Errorf("%d files from %d to %d: some are missing", count, first, last)
	}
	return last, err
}

func checkTreeFile(path string, newest int64) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, body, _ := bytes.Cut(data, []byte{'\n'})
	var committed int64
	var sum uint32
	if n, _ := fmt.Sscanf(string(head), "%d %x", &committed, &sum); n != 2 || crc32.ChecksumIEEE(body) != sum {
		return fmt.Errorf("%s is not what was written", path)
	}
	if committed > newest {
		return fmt.Errorf("%s was written after transaction %d, the database ends with %d", path, committed, newest)
	}
	return nil
}
