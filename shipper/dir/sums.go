package dir

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// sumPiece is how much of a file is in memory while its checksum is computed, in bytes.
const sumPiece = 1 << 20

// Sum implements target.Target: the directory reads its own disk.
func (d *Dir) Sum(ctx context.Context, name, snapshot string, off, n int64) (checksum.Sum, error) {
	var sum checksum.Sum
	err := d.run(ctx, "Sum", name, func(rel string) error {
		if err := target.CheckSum(off, n, target.MaxPages); err != nil {
			return err
		}
		return d.reading(rel, snapshot, off, n, func(f *os.File) (err error) {
			sum, err = sumOf(ctx, f, off, n)
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	return sum, nil
}

func sumOf(ctx context.Context, f io.ReaderAt, off, n int64) (checksum.Sum, error) {
	sum, buf := checksum.Of(nil), make([]byte, min(n, sumPiece))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		buf = buf[:min(n, int64(len(buf)))]
		if _, err := f.ReadAt(buf, off); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // it was as long a moment ago
			}
			return 0, err
		}
		sum = checksum.Update(sum, buf)
		off, n = off+int64(len(buf)), n-int64(len(buf))
	}
	return sum, nil
}
