package preflight

import (
	"bytes"
	"testing"
)

// FuzzBoot: what a guest wrote to the head of its disk is looked at and ends in one of the three answers.
func FuzzBoot(f *testing.F) {
	mbr := make([]byte, 8*sector)
	mbr[510], mbr[511], mbr[mbrEntries] = 0x55, 0xaa, mbrActive
	f.Add(mbr)
	gpt := bytes.Clone(mbr)
	copy(gpt[sector:], gptMagic)
	gpt[sector+72], gpt[sector+80], gpt[sector+84] = 2, 4, 128
	copy(gpt[2*sector+128:], espType)
	f.Add(gpt)
	huge := bytes.Clone(gpt)
	copy(huge[sector+72:], bytes.Repeat([]byte{0x7f}, 16))
	f.Add(huge)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, disk []byte) {
		b, size := bootOf(bytes.NewReader(disk))
		if b != bootNone && b != bootBIOS && b != bootUEFI || size != 0 && size != sector && size != sector4K || b == bootUEFI && size == 0 {
			t.Errorf("%q, sectors of %d bytes", b, size)
		}
	})
}
