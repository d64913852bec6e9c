package target

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// The checks every implementation makes before it sends or changes anything.
// Their errors wrap ErrName, ErrRange or ErrTooLarge.

// CheckName refuses names outside the contract.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName || !utf8.ValidString(name) {
		return fmt.Errorf("%w: empty, longer than %d bytes or not UTF-8: %.80q", ErrName, MaxName, name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, isControl) {
			return fmt.Errorf("%w: %.80q has the element %.80q", ErrName, name, part)
		}
	}
	return nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }

// CheckSize refuses sizes of page blobs that are negative, no multiple of
// PageSize, or above MaxPages.
func CheckSize(size int64) error {
	if size < 0 || size%PageSize != 0 {
		return fmt.Errorf("%w: size %d is no multiple of %d", ErrRange, size, PageSize)
	}
	if size > MaxPages {
		return fmt.Errorf("%w: size %d is above the %d of a page blob", ErrTooLarge, size, int64(MaxPages))
	}
	return nil
}

// CheckPages refuses a range that is empty, not aligned to PageSize or not within
// size; it is for writes.
func CheckPages(off, n, size int64) error {
	if off%PageSize != 0 || n%PageSize != 0 || n <= 0 {
		return fmt.Errorf("%w: %d bytes at %d: not in whole pages of %d", ErrRange, n, off, PageSize)
	}
	return CheckWithin(off, n, size)
}

// CheckWithin refuses a range that is not within size.
func CheckWithin(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: %d bytes at %d of a blob of %d", ErrRange, n, off, size)
	}
	return nil
}

// CheckSum refuses a range of a Sum that is too large or not within size.
func CheckSum(off, n, size int64) error {
	if n > MaxSum {
		return fmt.Errorf("%w: checksum of %d bytes, at most %d", ErrTooLarge, n, int64(MaxSum))
	}
	return CheckWithin(off, n, size)
}

// CheckPut refuses a put of n bytes that is not in whole pages or too large.
func CheckPut(off int64, n int) error {
	if n > MaxPut {
		return fmt.Errorf("%w: put of %d bytes, at most %d", ErrTooLarge, n, MaxPut)
	}
	return CheckPages(off, int64(n), MaxPages)
}

// MaxSequence is the largest sequence number: Azurite loses precision above
// (AZURE.md 0.8).
const MaxSequence = 1<<53 - 1

// CheckSequence refuses numbers a blob cannot have.
func CheckSequence(sequence int64) error {
	if sequence < 0 || sequence > MaxSequence {
		return fmt.Errorf("%w: sequence number %d", ErrRange, sequence)
	}
	return nil
}

// CheckObject refuses small objects above MaxObject.
func CheckObject(data []byte) error {
	if len(data) > MaxObject {
		return fmt.Errorf("%w: object of %d bytes, at most %d", ErrTooLarge, len(data), MaxObject)
	}
	return nil
}

// CheckMetadata refuses keys and values that would not survive the way through
// HTTP headers, and more of them than the service takes.
func CheckMetadata(m map[string]string) error {
	total := 0
	for k, v := range m {
		total += len(k) + len(v)
		if !metadataKey(k) || strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r > 0x7e }) || strings.TrimSpace(v) != v {
			return fmt.Errorf("%w: metadata %.40q=%.40q", ErrName, k, v)
		}
	}
	if total > MaxMetadata {
		return fmt.Errorf("%w: %d bytes of metadata, at most %d", ErrTooLarge, total, MaxMetadata)
	}
	return nil
}

func metadataKey(k string) bool {
	for i, r := range k {
		letter := r >= 'a' && r <= 'z'
		if !letter && (i == 0 || r != '_' && (r < '0' || r > '9')) {
			return false
		}
	}
	return k != ""
}
