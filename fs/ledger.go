package fs

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ledger is what the kernel knows of a mount and a dead daemon cannot tell any more: which inodes, how often looked up
// and opened, and how far each request got that must not be done twice. It is shared memory (a memfd) that is kept beside
// /dev/fuse by whoever keeps that, so it lives exactly as long as the connection. It is written with plain stores: a
// process that is killed leaves its memory as it was, and a host that dies takes the mount along.
//
//	0        header: magic, version, length, CRC-32 of the facts (little endian), then the facts as JSON
//	16 KiB   requests: maxActs records of 64 bytes
//	80 KiB   inodes: maxSlots records of 64 bytes; never touched, they take no memory
//
// Never change a field's meaning: give it a new version. A program reads all versions up to its own and, when it takes over,
// makes the ledger one of its own.
const (
	ledgerMagic   = "vhdrelay"
	ledgerVersion = 1
	headerSize    = 16 << 10
	versionAt     = 8
	factsAt       = 20
	maxActs       = 1024
	maxSlots      = 1 << 20
	actsAt        = headerSize
	slotsAt       = actsAt + maxActs*int(unsafe.Sizeof(act{}))
	ledgerSize    = slotsAt + maxSlots*int(unsafe.Sizeof(slot{}))
)

// Reasons why a mount that an earlier process left is not taken over; test with errors.Is.
var (
	ErrNewer   = errors.New("the mount was served by a newer vhdrelay, whose state this one does not know")
	ErrDamaged = errors.New("what the earlier process left of the mount is damaged")
	ErrAborted = errors.New("the connection of the mount has ended meanwhile")
	ErrOther   = errors.New("the mount that an earlier process left is another one than the configured")
)

// facts are fixed when a mount is made.
type facts struct {
	Writer   string // version of the ledger's writer, for people
	Dev, Ino uint64 // of the source
	Mount    string // where
	Device   string // of the mount in mountinfo, major:minor
	Init     []byte // the kernel's INIT request
	Answer   []byte // what it was answered
}

// slot is an inode that the kernel knows. Guarded as node.lookups, node.open and node.sync are.
type slot struct {
	ino, gen uint64 // ino 0: free; written last
	lookups  uint64
	opens    uint32
	errno    uint32 // of a failed fsync
	_        [4]uint64
}

// act is one request that must not be done twice.
type act struct {
	unique uint64 // without the resend bit
	before [2]uint64
	state  uint32 // written last: actBegun, then actDone
	errno  uint32
	_      [4]uint64
}

const (
	actBegun = 1
	actDone  = 2
)

// ledger is one mapped. Its methods that change slots are called under tree.mu.
type ledger struct {
	file  *os.File
	mem   []byte
	acts  []act
	slots []slot
	past  map[uint64]act       // what earlier processes noted, by request; never changed: new requests take the places
	busy  [maxActs]atomic.Bool // a handler of this process is at it
	next  atomic.Uint32        // act to use
	free  []int32
	used  int // slots that were ever given out
}

// newLedger makes an empty one; write gives it its header.
func newLedger() (*ledger, error) {
	fd, err := unix.MemfdCreate("vhdrelay-mount", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "vhdrelay-mount")
	if err := f.Truncate(int64(ledgerSize)); err != nil {
		return nil, errors.Join(fmt.Errorf("shared memory: %w", err), f.Close())
	}
	l, err := mapLedger(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// openLedger reads one that an earlier process left. It owns f.
func openLedger(f *os.File) (*ledger, facts, error) {
	l, have, err := readLedger(f)
	if err != nil {
		return nil, facts{}, errors.Join(err, f.Close())
	}
	l.past = l.notes()
	for i := range l.slots {
		if l.slots[i].ino != 0 {
			l.used = i + 1
		}
	}
	for i := range l.slots[:l.used] {
		if l.slots[i].ino == 0 {
			l.free = append(l.free, int32(i))
		}
	}
	return l, have, nil
}

func readLedger(f *os.File) (*ledger, facts, error) {
	head := make([]byte, headerSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, facts{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	have, err := decodeHeader(head)
	if err != nil {
		return nil, facts{}, err
	}
	if st, err := f.Stat(); err != nil || st.Size() != int64(ledgerSize) {
		return nil, facts{}, fmt.Errorf("%w: its size is wrong", ErrDamaged)
	}
	l, err := mapLedger(f)
	return l, have, err
}

func mapLedger(f *os.File) (*ledger, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, ledgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	return &ledger{file: f, mem: mem,
		acts:  unsafe.Slice((*act)(unsafe.Pointer(&mem[actsAt])), maxActs),
		slots: unsafe.Slice((*slot)(unsafe.Pointer(&mem[slotsAt])), maxSlots),
	}, nil
}

// write puts the header there, before the first request is answered.
func (l *ledger) write(have facts) error {
	head, err := encodeHeader(have, ledgerVersion)
	if err != nil {
		return err
	}
	copy(l.mem, head)
	return nil
}

// raise makes the ledger one of this program's version: an older program takes it over no more. One that is killed here has
// raised it or not; the records are the same in both.
func (l *ledger) raise() {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&l.mem[versionAt])), ledgerVersion)
}

func encodeHeader(have facts, version uint32) ([]byte, error) {
	text, err := json.Marshal(have)
	if err != nil {
		return nil, err
	}
	if len(text) > headerSize-factsAt {
		return nil, fmt.Errorf("facts of the mount: %d bytes are too many", len(text))
	}
	head := append([]byte(ledgerMagic), make([]byte, factsAt-len(ledgerMagic))...)
	binary.LittleEndian.PutUint32(head[versionAt:], version)
	binary.LittleEndian.PutUint32(head[12:], uint32(len(text)))
	binary.LittleEndian.PutUint32(head[16:], crc32.ChecksumIEEE(text))
	return append(head, text...), nil
}

func decodeHeader(head []byte) (have facts, err error) {
	if len(head) < factsAt || string(head[:8]) != ledgerMagic {
		return have, fmt.Errorf("%w: it has another magic", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(head[versionAt:]); v > ledgerVersion {
		return have, fmt.Errorf("version %d, known are those up to %d: %w", v, ledgerVersion, ErrNewer)
	}
	size := int(binary.LittleEndian.Uint32(head[12:]))
	if size > len(head)-factsAt {
		return have, fmt.Errorf("%w: facts of %d bytes", ErrDamaged, size)
	}
	text := head[factsAt : factsAt+size]
	if crc32.ChecksumIEEE(text) != binary.LittleEndian.Uint32(head[16:]) {
		return have, fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
	}
	if err := json.Unmarshal(text, &have); err != nil {
		return have, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return have, nil
}

// give returns a slot for an inode; nil if there are no more: the kernel's next process does not know it then.
func (l *ledger) give(ino, gen uint64) *slot {
	if l == nil {
		return nil
	}
	var s *slot
	switch {
	case len(l.free) > 0:
		s = &l.slots[l.free[len(l.free)-1]]
		l.free = l.free[:len(l.free)-1]
	case l.used < maxSlots:
		s = &l.slots[l.used]
		l.used++
	default:
		return nil
	}
	*s = slot{gen: gen}
	atomic.StoreUint64(&s.ino, ino)
	return s
}

// takeBack frees the slot of a forgotten inode.
func (l *ledger) takeBack(s *slot) {
	if l == nil || s == nil {
		return
	}
	atomic.StoreUint64(&s.ino, 0)
	l.free = append(l.free, int32((uintptr(unsafe.Pointer(s))-uintptr(unsafe.Pointer(&l.slots[0])))/unsafe.Sizeof(slot{})))
}

// known lists the slots in use by inode number.
func (l *ledger) known() map[uint64]*slot {
	all := map[uint64]*slot{}
	for i := range l.slots[:l.used] {
		if s := &l.slots[i]; s.ino != 0 {
			all[s.ino] = s
		}
	}
	return all
}

// close gives the memory back; nobody may use a slot any more.
func (l *ledger) close() error {
	if l == nil {
		return nil
	}
	l.acts, l.slots = nil, nil
	return errors.Join(unix.Munmap(l.mem), l.file.Close())
}
