package fs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"unsafe"
)

var someFacts = facts{Writer: "1.2", Dev: 1, Ino: 2, Mount: "/vhd", Device: "0:52", Init: []byte{1, 2}, Answer: []byte{3}}

func TestHeaderIsRead(t *testing.T) {
	head, err := encodeHeader(someFacts, ledgerVersion)
	if err != nil {
		t.Fatal(err)
	}
	if have, err := decodeHeader(head); err != nil || !reflect.DeepEqual(have, someFacts) {
		t.Errorf("%+v, %v", have, err)
	}
	const golden = "vhdrelay\x01\x00\x00\x00"
	if string(head[:12]) != golden {
		t.Errorf("%q", head[:12])
	}
	for i := range head[:factsAt+10] {
		bad := append([]byte{}, head...)
		bad[i] ^= 0x40
		if _, err := decodeHeader(bad); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	newer, err := encodeHeader(someFacts, ledgerVersion+1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeHeader(newer); !errors.Is(err, ErrNewer) {
		t.Errorf("a newer version: %v", err)
	}
}

// The sizes are part of the format.
func TestRecordsKeepTheirSizes(t *testing.T) {
	if a, s := unsafe.Sizeof(act{}), unsafe.Sizeof(slot{}); a != 64 || s != 64 {
		t.Errorf("%d, %d", a, s)
	}
	if actsAt != 16384 || slotsAt != 81920 {
		t.Errorf("%d, %d", actsAt, slotsAt)
	}
}

func TestLedgerIsReadByTheNext(t *testing.T) {
	l, err := newLedger()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.write(someFacts); err != nil {
		t.Fatal(err)
	}
	a, b := l.give(10, 1), l.give(11, 2)
	a.lookups, a.opens, b.lookups = 3, 1, 1
	i, again := l.begin(100, [2]uint64{7})
	if i < 0 || again {
		t.Fatal(i, again)
	}
	l.acts[i].end(nil)
	l.takeBack(b)
	next, have, err := openLedger(dup(t, l.file))
	if err != nil || have.Mount != "/vhd" {
		t.Fatal(have, err)
	}
	defer next.close()
	known := next.known()
	if len(known) != 1 || known[10].lookups != 3 || known[10].opens != 1 || known[10].gen != 1 {
		t.Errorf("%+v", known)
	}
	j, again := next.begin(100|resent, [2]uint64{8})
	if !again || next.acts[j].state != actDone || next.acts[j].before != [2]uint64{7} {
		t.Errorf("%+v, %v", next.acts[j], again)
	}
	if j, again := next.begin(102|resent, [2]uint64{8}); j < 0 || again {
		t.Errorf("a request that nobody began: %d, %v", j, again)
	}
	if s := next.give(12, 0); s != &next.slots[1] {
		t.Error("a slot that is free is not used")
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}
}

func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	g, err := os.OpenFile(filepath.Join(procPath(int(f.Fd()))), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return g
}
