package resync

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// replica is a snapshot in memory; it counts what is asked of it.
type replica struct {
	mu sync.Mutex // guards the rest, no I/O
	// data beyond which there is nothing but zeros
	data    []byte
	carried diskSet
	noSums  bool
	asked   []diskRange // sums
	read    []diskRange
	onRead  func(r *replica, at diskRange, p []byte) error
	onList  func(r *replica)
}

func (r *replica) bytes(at diskRange) []byte {
	p := make([]byte, at.Bytes())
	if at.Offset() < int64(len(r.data)) {
		copy(p, r.data[at.Offset():])
	}
	return p
}

func (r *replica) Sum(_ context.Context, at diskRange) (checksum.Sum, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, at)
	return checksum.Of(r.bytes(at)), !r.noSums, nil
}

func (r *replica) Read(_ context.Context, at diskRange, p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read = append(r.read, at)
	copy(p, r.bytes(at))
	if r.onRead != nil {
		return r.onRead(r, at, p)
	}
	return nil
}

func (r *replica) Allocated(_ context.Context, at diskRange) (diskSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var set diskSet
	for b := at.Start; b < at.End; b++ {
		one := diskRange{Start: b, End: b + 1}
		if !checksum.IsZero(r.bytes(one)) {
			set.Add(one)
		}
	}
	return set, nil
}

func (r *replica) Carried(context.Context) (diskSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.onList != nil {
		r.onList(r)
	}
	return r.carried.Clone(), nil
}

// forgets is a DeepDeps.Forget that does it.
func forgets(t testing.TB, table *checksum.Table, set *diskSet) func(...diskRange) error {
	return func(rs ...diskRange) error {
		for _, r := range rs {
			set.Add(r)
		}
		if err := table.Forget(rs...); err != nil {
			t.Error(err)
		}
		return nil
	}
}

func full(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32()) | 1 // no zero block
	}
	return p
}

func damaged(r *rand.Rand, data []byte, n int) (blocks diskSet) {
	for int(blocks.Blocks()) < n {
		b := r.IntN(len(data) / blockSize)
		if one := (diskRange{Start: extent.DiskBlock(b), End: extent.DiskBlock(b) + 1}); !blocks.Overlaps(one) {
			blocks.Add(one)
			data[b*blockSize+r.IntN(blockSize)] ^= 0x40
		}
	}
	return blocks
}

func chunksOf(set diskSet) map[extent.DiskBlock]bool {
	chunks := map[extent.DiskBlock]bool{}
	for _, run := range set.Ranges() {
		for b := run.Start; b < run.End; b++ {
			chunks[b/extent.BlocksPerChunk] = true
		}
	}
	return chunks
}

func TestDeepFindsExactlyTheDamageAndReadsOnlyItsChunks(t *testing.T) {
	const size = 64 << 20
	data := full(1, size)
	table := tableOf(t, data)
	rep := &replica{data: data}
	want := damaged(rand.New(rand.NewPCG(7, 7)), rep.data, 20)
	var found diskSet
	var passed []extent.DiskBlock
	d := NewDeep(DeepDeps{Replica: rep, Table: table, Forget: forgets(t, table, &found),
		Passed: func(b extent.DiskBlock) error { passed = append(passed, b); return nil }}, Options{})
	report, err := d.Run(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(found.Ranges(), want.Ranges()) || report.Differing != want.Blocks()*blockSize || table.UnknownCount() != want.Blocks() {
		t.Errorf("found %v, damaged %v; %+v", found.Ranges(), want.Ranges(), report)
	}
	read := map[extent.DiskBlock]bool{}
	for _, r := range rep.read {
		read[r.Start/extent.BlocksPerChunk] = true
	}
	if bad := chunksOf(want); len(read) != len(bad) || report.Downloaded > 2*int64(len(bad))<<20 { // each is looked at once more
		t.Errorf("read %d chunks, damaged are %d; %+v", len(read), len(bad), report.Cost)
	}
	if len(passed) != size/deepStride || !slices.IsSorted(passed) || report.Compared != size {
		t.Errorf("passed %v; %+v", passed, report)
	}
}

func TestDeepOfAWholeDiskAsksOncePerStride(t *testing.T) {
	data := full(2, 32<<20)
	table, rep := tableOf(t, data), &replica{data: data}
	report, err := NewDeep(DeepDeps{Replica: rep, Table: table}, Options{}).Run(t.Context(), 0)
	if err != nil || report.Cost != (Cost{Sums: 8}) || report.Differing != 0 {
		t.Errorf("%+v %v", report, err)
	}
}

// A hole is judged without a request of its own.
func TestDeepKnowsHoles(t *testing.T) {
	data := make([]byte, 32<<20)
	table, rep := tableOf(t, data), &replica{}
	var found diskSet
	deps := DeepDeps{Replica: rep, Table: table, Forget: forgets(t, table, &found)}
	if report, err := NewDeep(deps, Options{}).Run(t.Context(), 0); err != nil || report.Cost != (Cost{}) || report.Differing != 0 {
		t.Errorf("%+v %v", report, err)
	}
	// The table says there is something, and the target holds nothing.
	if err := table.Learn(diskRange{Start: 5000, End: 5001}, []checksum.Sum{1}); err != nil {
		t.Fatal(err)
	}
	if report, err := NewDeep(deps, Options{}).Run(t.Context(), 0); err != nil || report.Differing != blockSize || !found.Contains(diskRange{Start: 5000, End: 5001}) {
		t.Errorf("%+v %v %v", report, err, found.Ranges())
	}
}

// What later epochs carry is old in the snapshot, and no damage; nor is what is
// unknown anyway.
func TestDeepSkipsCarriedAndUnknown(t *testing.T) {
	data := full(3, 8<<20)
	table := tableOf(t, data)
	rep := &replica{data: slices.Clone(data)}
	carried := diskRange{Start: 100, End: 700}
	for b := carried.Start; b < carried.End; b++ {
		rep.data[int(b)*blockSize] ^= 2
	}
	rep.carried.Add(carried)
	if err := table.Forget(diskRange{Start: 1000, End: 1010}); err != nil {
		t.Fatal(err)
	}
	rep.data[1005*blockSize] ^= 2
	rep.data[50*blockSize] ^= 2 // the one that counts
	var found diskSet
	report, err := NewDeep(DeepDeps{Replica: rep, Table: table, Forget: forgets(t, table, &found)}, Options{}).Run(t.Context(), 0)
	if err != nil || !slices.Equal(found.Ranges(), []diskRange{{Start: 50, End: 51}}) || report.Skipped != 610*blockSize {
		t.Errorf("%+v %v %v", report, err, found.Ranges())
	}
}

// An epoch is committed between the look at the snapshot and the list of what is
// carried, and another given up: neither makes a difference that is none.
func TestDeepLooksTwiceBeforeItFlags(t *testing.T) {
	data := full(4, 4<<20)
	at := map[string]int{"carried meanwhile": 2, "given up meanwhile": 1}
	for name, change := range map[string]func(r *replica, table *checksum.Table){
		"carried meanwhile": func(r *replica, _ *checksum.Table) { r.carried.Add(diskRange{Start: 7, End: 8}) },
		"given up meanwhile": func(_ *replica, table *checksum.Table) {
			if err := table.Forget(diskRange{Start: 7, End: 8}); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := tableOf(t, data)
			rep := &replica{data: slices.Clone(data)}
			rep.data[7*blockSize] ^= 1
			lists := 0
			rep.onList = func(r *replica) {
				if lists++; lists == at[name] {
					change(r, table)
				}
			}
			var found diskSet
			report, err := NewDeep(DeepDeps{Replica: rep, Table: table, Forget: forgets(t, table, &found)}, Options{}).Run(t.Context(), 0)
			if err != nil || !found.Empty() {
				t.Errorf("%+v %v %v", report, err, found.Ranges())
			}
		})
	}
}

// Bytes that were damaged on their way to us once are no damage at the target.
func TestDeepReadsAgainBeforeItFlags(t *testing.T) {
	data := full(5, 4<<20)
	table, rep := tableOf(t, data), &replica{data: data, noSums: true}
	reads := 0
	rep.onRead = func(_ *replica, _ diskRange, p []byte) error {
		if reads++; reads == 2 {
			p[100] ^= 1
		}
		return nil
	}
	var found diskSet
	report, err := NewDeep(DeepDeps{Replica: rep, Table: table, Forget: forgets(t, table, &found)}, Options{}).Run(t.Context(), 0)
	if err != nil || !found.Empty() || report.Sums != 1 || report.Reads != 5 {
		t.Errorf("%+v %v %v", report, err, found.Ranges())
	}
}

func TestDeepEndsWithTheFirstErrorAndGoesOnThere(t *testing.T) {
	data := full(6, 64<<20)
	table := tableOf(t, data)
	rep := &replica{data: data}
	want := damaged(rand.New(rand.NewPCG(1, 2)), rep.data, 10)
	gone := errors.New("snapshot is gone")
	reads := 0
	rep.onRead = func(*replica, diskRange, []byte) error {
		if reads++; reads == 7 {
			return gone
		}
		return nil
	}
	var found diskSet
	var at extent.DiskBlock
	deps := DeepDeps{Replica: rep, Table: table, Forget: forgets(t, table, &found), Passed: func(b extent.DiskBlock) error { at = b; return nil }}
	first, err := NewDeep(deps, Options{}).Run(t.Context(), 0)
	if !errors.Is(err, gone) || first.Compared != int64(at)*blockSize {
		t.Fatalf("%+v %v, passed %d", first, err, at)
	}
	second, err := NewDeep(deps, Options{}).Run(t.Context(), at)
	if err != nil || first.Compared+second.Compared != 64<<20 || !slices.Equal(found.Ranges(), want.Ranges()) {
		t.Errorf("%+v then %+v, %v: %v of %v", first, second, err, found.Ranges(), want.Ranges())
	}
}
