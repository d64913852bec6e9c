package image

import (
	"bytes"
	"testing"
)

// FuzzParseFooter: any 512 bytes are a footer whose checksum holds, or an error.
func FuzzParseFooter(f *testing.F) {
	footer := FixedFooter(1<<20, testID, epoch2000)
	f.Add(footer[:])
	f.Add(bytes.Repeat([]byte{0xff}, FooterSize))
	f.Add(footer[:FooterSize-1])
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := ParseFooter(data); err == nil && (len(data) < FooterSize || !bytes.HasPrefix(data, []byte("conectix"))) {
			t.Errorf("%d bytes without a cookie pass", len(data))
		}
	})
}
