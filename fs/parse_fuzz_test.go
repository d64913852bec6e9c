package fs

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// FuzzLedgerHeader: whatever a former process left is facts that can be written again, or one of the two errors.
func FuzzLedgerHeader(f *testing.F) {
	good, err := encodeHeader(facts{Writer: "1", Dev: 2, Ino: 3, Mount: "/vhd", Device: "0:44", Init: []byte{1, 2}, Answer: []byte{3}}, ledgerVersion)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:factsAt])
	f.Add([]byte(ledgerMagic))
	f.Fuzz(func(t *testing.T, head []byte) {
		have, err := decodeHeader(head)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Errorf("%v is neither damage nor a newer version", err)
			}
			return
		}
		again, err := encodeHeader(have, ledgerVersion)
		if err != nil {
			return // more than fits, written by hand
		}
		if back, err := decodeHeader(again); err != nil || !reflect.DeepEqual(back, have) && len(back.Init)+len(back.Answer) > 0 {
			t.Errorf("%+v, %v, was %+v", back, err, have)
		}
	})
}

// FuzzMountinfo: every mount that is found was asked for, and has a name.
func FuzzMountinfo(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n")
	f.Add("36 35 98:0 / /a rw - fuse.vhdrelay x rw\n36 35 98:0 / /b rw")
	f.Add(" - \n\\9\\777")
	f.Fuzz(func(t *testing.T, text string) {
		asked := map[string]bool{}
		found, err := parseMounts(strings.NewReader(text), func(dir string) bool { asked[dir] = true; return true })
		if err != nil {
			return // a line too long
		}
		for _, m := range found {
			if !asked[m.dir] || m.fsType == "" || m.device == "" {
				t.Errorf("%+v", m)
			}
		}
	})
}
