package resync

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

const blockSize = extent.BlockSize

// source is an image in memory that tracks guest writes as the journal does,
// and checks every promise that Source makes.
type source struct {
	t  testing.TB
	mu struct {
		sync.Mutex
		data    []byte
		suspect extent.Set[extent.FileBlock]
		changed extent.Set[extent.FileBlock] // the change set: marks and guest writes
		passed  []fileRange
		reads   int
	}
	failRead     int // the read that fails
	failCompared error
	onRead       func(off int64)
	onCompared   func(r fileRange)
}

var errRead = errors.New("bad sector")

func newSource(t testing.TB, data []byte, suspect ...fileRange) *source {
	s := &source{t: t}
	s.mu.data = data
	s.mu.suspect = extent.Of(suspect...)
	return s
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if s.onRead != nil {
		s.onRead(off)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.reads++
	if s.mu.reads == s.failRead {
		return 0, errRead
	}
	if off >= int64(len(s.mu.data)) {
		return 0, io.EOF
	}
	n := copy(p, s.mu.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *source) Suspect() []fileRange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mu.suspect.Ranges())
}

func (s *source) Mark(r fileRange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mu.suspect.Contains(r) {
		s.t.Errorf("marked %v, which is not suspect", r)
	}
	s.mu.changed.Add(r)
}

func (s *source) Compared(r fileRange) error {
	if s.onCompared != nil {
		s.onCompared(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failCompared != nil {
		return s.failCompared
	}
	if n := len(s.mu.passed); n > 0 && s.mu.passed[n-1].End > r.Start {
		s.t.Errorf("compared %v after %v", r, s.mu.passed[n-1])
	}
	s.mu.passed = append(s.mu.passed, r)
	s.mu.suspect.Remove(r)
	return nil
}

// write is a guest's: tracked, then done.
func (s *source) write(off int, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.changed.Add(extent.Cover[extent.FileBlock](int64(off), int64(len(p))))
	copy(s.mu.data[off:], p)
}

// layout is a disk of size bytes that begins lead blocks into its file.
type layout struct {
	lead extent.FileBlock
	size int64
}

func (l layout) Disk() diskRange { return extent.Cover[extent.DiskBlock](0, l.size) }
func (l layout) DiskBlocks(r fileRange) diskSet {
	return extent.Of(diskRange{Start: extent.DiskBlock(r.Start - l.lead), End: extent.DiskBlock(r.End - l.lead)}.Intersect(l.Disk()))
}
func (l layout) FileBlocks(r diskRange) fileSet { return extent.Of(l.at(r)) }
func (l layout) at(r diskRange) fileRange {
	return fileRange{Start: extent.FileBlock(r.Start) + l.lead, End: extent.FileBlock(r.End) + l.lead}
}
func (l layout) Metadata() []fileRange { return nil }
func (l layout) CutOff(r fileRange) fileRange {
	r.Start = max(r.Start, l.at(l.Disk()).End)
	return r
}
func (l layout) ReadDisk(src io.ReaderAt, r diskRange, p []byte) error {
	n, err := src.ReadAt(p, l.at(r).Offset())
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[min(n, int(max(0, l.size-r.Offset()))):])
	return nil
}

// tableOf makes a table that knows every block of data.
func tableOf(t testing.TB, data []byte) *checksum.Table {
	t.Helper()
	sums := checksum.Blocks(nil, data)
	table, err := checksum.CreateTable(filepath.Join(t.TempDir(), "table"), extent.DiskBlock(len(sums)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Check(); err != nil {
			t.Error(err)
		}
		table.Close()
	})
	if err := table.Learn(diskRange{End: table.Blocks()}, sums); err != nil {
		t.Fatal(err)
	}
	return table
}

func randomData(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, n)
	for i := 0; i < n; i += 97 {
		p[i] = byte(r.Uint32())
	}
	return p
}

func whole(data []byte) fileRange { return extent.Cover[extent.FileBlock](0, int64(len(data))) }

// wantDelta recomputes block by block what must be in the change set.
func wantDelta(t *testing.T, s *source, table *checksum.Table, l layout) {
	t.Helper()
	disk := slices.Clone(s.mu.data[min(int64(l.lead)*blockSize, int64(len(s.mu.data))):])
	disk = disk[:min(int64(len(disk)), l.size)]
	sums := checksum.Blocks(nil, disk)
	entries, err := table.Entries(diskRange{End: table.Blocks()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int(l.Disk().End) {
		sum, e := checksum.ZeroBlock, checksum.Entry{Sum: checksum.ZeroBlock, Known: true}
		if i < len(sums) {
			sum = sums[i]
		}
		if i < len(entries) {
			e = entries[i]
		}
		b := l.at(diskRange{Start: extent.DiskBlock(i), End: extent.DiskBlock(i) + 1})
		if e.Known && e.Sum != sum && !s.mu.changed.Contains(b) && !s.mu.suspect.Contains(b) {
			t.Errorf("block %d differs and nobody knows", i)
		}
	}
}

func run(t *testing.T, s *source, table Table, l Layout) Report {
	t.Helper()
	report, err := New(Deps{s, table, l}, Options{Reason: "test"}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestScanMarksExactlyWhatDiffers(t *testing.T) {
	const size = 5<<20 + 3*blockSize
	data := randomData(1, size)
	table := tableOf(t, data)
	for _, b := range []int{0, 255, 256, 257, 600, size/blockSize - 1} {
		data[b*blockSize+9] ^= 1
	}
	data[700*blockSize] ^= 1 // not suspect: not read
	l := layout{size: size}
	s := newSource(t, data, fileRange{Start: 0, End: 650}, fileRange{Start: 1000, End: 1283})
	report := run(t, s, table, l)
	want := []fileRange{{Start: 0, End: 1}, {Start: 255, End: 258}, {Start: 600, End: 601}, {Start: 1282, End: 1283}}
	if !slices.Equal(s.mu.changed.Ranges(), want) {
		t.Errorf("marked %v, expected %v", s.mu.changed.Ranges(), want)
	}
	const total = (650 + 283) * blockSize
	if report != (Report{Reason: "test", Progress: Progress{Total: total, Compared: total, Differing: 6 * blockSize}}) {
		t.Errorf("report %+v", report)
	}
	if len(s.Suspect()) != 0 {
		t.Errorf("still suspect: %v", s.Suspect())
	}
}

func TestUnknownIsCountedNotMarked(t *testing.T) {
	data := randomData(2, 3<<20)
	table := tableOf(t, data)
	if err := table.Forget(diskRange{Start: 10, End: 14}); err != nil {
		t.Fatal(err)
	}
	data[12*blockSize] ^= 1
	data[20*blockSize] ^= 1
	s := newSource(t, data, whole(data))
	report := run(t, s, table, layout{size: 3 << 20})
	if got := s.mu.changed.Ranges(); !slices.Equal(got, []fileRange{{Start: 20, End: 21}}) {
		t.Errorf("marked %v", got)
	}
	if report.Unknown != 4*blockSize || report.Differing != 5*blockSize {
		t.Errorf("report %+v", report)
	}
}

// In a fixed VHD the footer may share the disk's last block; a raw file may end
// in the middle of it. Neither is a difference.
func TestLastPartialBlockIsZeroPadded(t *testing.T) {
	const size = 1<<20 + 100
	data := randomData(3, size)
	table := tableOf(t, data)
	l := layout{size: size}
	for name, image := range map[string][]byte{
		"footer": append(slices.Clone(data), make([]byte, 512)...),
		"raw":    data,
	} {
		if name == "footer" {
			copy(image[size:], "conectix")
		}
		s := newSource(t, image, whole(image), fileRange{Start: 300, End: 310}) // and metadata past the disk
		if report := run(t, s, table, l); report.Differing != 0 || report.Compared != report.Total {
			t.Errorf("%s: %+v, marked %v", name, report, s.mu.changed.Ranges())
		}
	}
}

func TestDiskInsideItsFile(t *testing.T) {
	const size = 3 << 20
	disk := randomData(4, size)
	table := tableOf(t, disk)
	image := append(make([]byte, 3*blockSize), disk...)
	image[(3+300)*blockSize] ^= 1
	s := newSource(t, image, whole(image))
	run(t, s, table, layout{lead: 3, size: size})
	if got := s.mu.changed.Ranges(); !slices.Equal(got, []fileRange{{Start: 303, End: 304}}) {
		t.Errorf("marked %v", got)
	}
}

// The blocks a disk has grown by are zeros until an epoch says otherwise; what
// the file lacks is zeros too.
func TestGrownDiskIsComparedWithZeros(t *testing.T) {
	data := randomData(5, 2<<20)
	table := tableOf(t, data)
	grown := append(slices.Clone(data), make([]byte, 1<<20)...)
	grown[2<<20+5*blockSize] = 1
	s := newSource(t, grown, fileRange{Start: 0, End: 1024})
	run(t, s, table, layout{size: 4 << 20})
	if got := s.mu.changed.Ranges(); !slices.Equal(got, []fileRange{{Start: 517, End: 518}}) {
		t.Errorf("marked %v", got)
	}
}

// Differences are in the change set before their range counts as compared.
func TestI4_MarkedBeforeCompared(t *testing.T) {
	data := randomData(6, 4<<20)
	table := tableOf(t, data)
	for b := 0; b < len(data)/blockSize; b += 3 {
		data[b*blockSize] ^= 1
	}
	s := newSource(t, data, whole(data))
	s.onCompared = func(r fileRange) {
		for b := r.Start; b < r.End; b++ {
			if b%3 == 0 && !s.mu.changed.Contains(fileRange{Start: b, End: b + 1}) {
				t.Errorf("block %d compared and not marked", b)
			}
		}
	}
	run(t, s, table, layout{size: 4 << 20})
}

// Guests write during the comparison, epochs are committed, and entries are
// forgotten; afterwards every difference is known to somebody.
func TestI8_ScanBesideWritesAndCommits(t *testing.T) {
	const size = 12 << 20
	for seed := uint64(0); seed < 8; seed++ {
		r := rand.New(rand.NewPCG(7, seed))
		data := randomData(seed, size)
		table := tableOf(t, data)
		for range 200 {
			data[r.IntN(size)]++
		}
		s := newSource(t, data, whole(data))
		var wg sync.WaitGroup
		done := make(chan struct{})
		wg.Go(func() { guest(t, s, table, r, done) })
		run(t, s, table, layout{size: size})
		close(done)
		wg.Wait()
		wantDelta(t, s, table, layout{size: size})
	}
}

// guest writes until done, and now and then ships what it wrote.
func guest(t *testing.T, s *source, table *checksum.Table, r *rand.Rand, done chan struct{}) {
	for epoch := uint64(1); ; epoch++ {
		select {
		case <-done:
			return
		default:
		}
		b := r.IntN(len(s.mu.data) / blockSize)
		p := make([]byte, blockSize)
		p[r.IntN(blockSize)] = byte(epoch)
		s.write(b*blockSize, p)
		d := diskRange{Start: extent.DiskBlock(b), End: extent.DiskBlock(b) + 1}
		var err error
		switch epoch % 5 {
		case 0:
			err = table.Forget(d)
		case 1, 2:
			err = table.Commit(epoch, table.Blocks(), func(yield func(checksum.Change, error) bool) {
				yield(checksum.Change{Range: d, Sums: []checksum.Sum{checksum.Of(p)}}, nil)
			})
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// Every read fails once: the run says so, nothing behind it counts as compared,
// and the next run finishes.
func TestEveryFailingReadIsReportedAndResumed(t *testing.T) {
	const size = 7 << 20
	data := randomData(8, size)
	table := tableOf(t, data)
	for b := 0; b < size/blockSize; b += 100 {
		data[b*blockSize] ^= 1
	}
	for k := 1; k <= 7; k++ {
		s := newSource(t, data, whole(data))
		s.failRead = k
		report, err := New(Deps{s, table, layout{size: size}}, Options{}).Run(t.Context())
		if !errors.Is(err, errRead) {
			t.Fatalf("read %d: %v", k, err)
		}
		if report.Remaining == 0 || report.Remaining+report.Compared != size {
			t.Errorf("read %d: %+v", k, report)
		}
		wantDelta(t, s, table, layout{size: size})
		again := run(t, s, table, layout{size: size})
		if again.Total != report.Remaining || again.Remaining != 0 {
			t.Errorf("read %d: resumed with %+v after %+v", k, again, report)
		}
		wantDelta(t, s, table, layout{size: size})
	}
}

func TestCursorFailureEndsTheRun(t *testing.T) {
	data := randomData(9, 2<<20)
	s := newSource(t, data, whole(data))
	s.failCompared = os.ErrPermission
	_, err := New(Deps{s, tableOf(t, data), layout{size: 2 << 20}}, Options{}).Run(t.Context())
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("run says %v", err)
	}
}

func TestBrokenTableEndsTheRun(t *testing.T) {
	data := randomData(10, 2<<20)
	s := newSource(t, data, whole(data))
	table, err := checksum.CreateTable(filepath.Join(t.TempDir(), "table"), 512)
	if err != nil {
		t.Fatal(err)
	}
	table.Close()
	report, err := New(Deps{s, table, layout{size: 2 << 20}}, Options{}).Run(t.Context())
	if !errors.Is(err, checksum.ErrBroken) || report.Remaining != 2<<20 {
		t.Errorf("run says %v, %+v", err, report)
	}
}

func TestPauseHoldsAndResumeGoesOn(t *testing.T) {
	data := randomData(11, 16<<20)
	table := tableOf(t, data)
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t, data, whole(data))
		scan := New(Deps{s, table, layout{size: 16 << 20}}, Options{})
		s.onCompared = func(r fileRange) {
			if r.Start == 512 {
				scan.Pause()
				scan.Pause() // twice is once
			}
		}
		end := make(chan error)
		go func() {
			_, err := scan.Run(context.Background())
			end <- err
		}()
		synctest.Wait()
		held := scan.Progress()
		if !scan.Paused() || held.Compared < 3<<20 || held.Compared > (3+depth)<<20 || held.Total != 16<<20 {
			t.Errorf("held at %+v", held)
		}
		if int64(s.mu.reads)<<20 != held.Compared {
			t.Errorf("%d strides read, only %d bytes handed over", s.mu.reads, held.Compared)
		}
		scan.Resume()
		scan.Resume()
		if err := <-end; err != nil || scan.Progress().Compared != 16<<20 {
			t.Errorf("resumed to %+v, %v", scan.Progress(), err)
		}
	})
}

func TestCancelEndsAPausedRun(t *testing.T) {
	data := randomData(12, 4<<20)
	table := tableOf(t, data)
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t, data, whole(data))
		scan := New(Deps{s, table, layout{size: 4 << 20}}, Options{})
		scan.Pause()
		ctx, cancel := context.WithCancel(context.Background())
		end := make(chan error)
		go func() {
			_, err := scan.Run(ctx)
			end <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-end; !errors.Is(err, context.Canceled) || s.mu.reads != 0 {
			t.Errorf("run says %v after %d reads", err, s.mu.reads)
		}
	})
}

func TestYieldPacesAndEndsTheRun(t *testing.T) {
	data := randomData(13, 4<<20+blockSize)
	s := newSource(t, data, whole(data))
	enough := errors.New("enough")
	var asked []int
	opts := Options{Yield: func(_ context.Context, n int) error {
		if asked = append(asked, n); len(asked) == 5 {
			return enough
		}
		return nil
	}}
	_, err := New(Deps{s, tableOf(t, data), layout{size: int64(len(data))}}, opts).Run(t.Context())
	if !errors.Is(err, enough) || !slices.Equal(asked, []int{1 << 20, 1 << 20, 1 << 20, 1 << 20, blockSize}) {
		t.Errorf("run says %v after %v", err, asked)
	}
}

// eager is a source that is told what to read ahead.
type eager struct {
	*source
	ahead map[int64]int64 // by offset; guarded by source.mu
}

func (e eager) ReadAhead(off, n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ahead[off] = n
}

// Everything is read ahead before it is read, and nothing else.
func TestReadsAhead(t *testing.T) {
	const size = 12 << 20
	data := randomData(3, size)
	e := eager{newSource(t, data, fileRange{Start: 0, End: 1200}, fileRange{Start: 2048, End: 2100}), map[int64]int64{}}
	late := 0
	e.onRead = func(off int64) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.ahead[off] == 0 {
			late++
		}
	}
	report, err := New(Deps{e, tableOf(t, data), layout{size: size}}, Options{}).Run(t.Context())
	var sum int64
	for _, n := range e.ahead {
		sum += n
	}
	if err != nil || late > 0 || sum != report.Total || len(e.ahead) != e.mu.reads {
		t.Errorf("%v: %d reads of %d came unannounced, %d of %d bytes announced", err, late, e.mu.reads, sum, report.Total)
	}
}

func TestNothingSuspectReadsNothing(t *testing.T) {
	data := randomData(14, 1<<20)
	s := newSource(t, data)
	if report := run(t, s, tableOf(t, data), layout{size: 1 << 20}); s.mu.reads != 0 || report != (Report{Reason: "test"}) {
		t.Errorf("%d reads, %+v", s.mu.reads, report)
	}
}

// fileSource reads a real file, for the benchmark.
type fileSource struct {
	*source
	f *os.File
}

func (s fileSource) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// Warm scan of 1 GiB against plain reads of the same file (what cat does).
func BenchmarkScan(b *testing.B) {
	const size = 1 << 30
	path := filepath.Join(b.TempDir(), "image")
	data := randomData(15, size)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	table := tableOf(b, data)
	data = nil
	b.Run("plain", func(b *testing.B) {
		buf := make([]byte, 128<<10)
		b.SetBytes(size)
		for b.Loop() {
			for off := int64(0); off < size; off += int64(len(buf)) {
				if _, err := f.ReadAt(buf, off); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("scan", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			s := newSource(b, nil, fileRange{End: size / blockSize})
			report, err := New(Deps{fileSource{s, f}, table, layout{size: size}}, Options{}).Run(b.Context())
			if err != nil || report.Differing != 0 {
				b.Fatal(report, err)
			}
		}
	})
}
