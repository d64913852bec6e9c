package spool

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// A document is one line, then JSON:
//
//	vhdrelay-spool 1 manifest 734 0123456789abcdef\n
//
// magic, format version, kind, bytes that follow the line, their CRC-64/NVME. These never change. Version 1: manifest and
// give-up as in shipper/README.md.
const (
	documentMagic   = "vhdrelay-spool"
	documentVersion = 1

	kindManifest = "manifest"
	kindGiveUp   = "give-up"
)

func encodeDocument(kind string, v any) ([]byte, error) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	body = append(body, '\n')
	head := fmt.Sprintf("%s %d %s %d %016x\n", documentMagic, documentVersion, kind, len(body), uint64(checksum.Of(body)))
	return append([]byte(head), body...), nil
}

// decodeDocument is strict: a field this program does not know was written by a newer one, and what it means is not to be
// guessed, so that is ErrVersion as well.
func decodeDocument(kind string, data []byte, v any) error {
	body, err := openDocument(kind, data)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	strict := dec.Decode(v)
	if strict == nil && len(bytes.TrimSpace(body[dec.InputOffset():])) == 0 {
		return nil
	}
	if strict != nil && json.Unmarshal(body, v) == nil {
		return fmt.Errorf("%w: %w", ErrVersion, strict) // fine but for a field we do not know
	}
	return fmt.Errorf("%w: %s is no such JSON: %w", ErrMalformed, kind, strict)
}

// openDocument checks everything about a document but its JSON, which it returns.
func openDocument(kind string, data []byte) ([]byte, error) {
	if m := min(len(data), len(documentMagic)); string(data[:m]) != documentMagic[:m] {
		return nil, fmt.Errorf("%w: begins with %q", ErrMagic, data[:m])
	}
	line, body, ok := bytes.Cut(data, []byte("\n"))
	if !ok {
		return nil, fmt.Errorf("%w: in its first line", ErrTruncated)
	}
	f := strings.Fields(string(line))
	if len(f) < 2 || f[0] != documentMagic {
		return nil, fmt.Errorf("%w: first line %q", ErrMagic, line)
	}
	version, err := strconv.ParseUint(f[1], 10, 31)
	if err == nil && version > documentVersion {
		return nil, fmt.Errorf("%w: version %d, this program knows %d", ErrVersion, version, documentVersion)
	}
	if err != nil || version == 0 || len(f) != 5 || f[2] != kind {
		return nil, fmt.Errorf("%w: first line %q", ErrMalformed, line)
	}
	return checkBody(body, f[3], f[4])
}

func checkBody(body []byte, length, sum string) ([]byte, error) {
	n, err := strconv.ParseInt(length, 10, 63)
	want, err2 := parseSum(sum)
	switch {
	case err != nil || err2 != nil:
		return nil, fmt.Errorf("%w: length %q, checksum %q", ErrMalformed, length, sum)
	case int64(len(body)) < n:
		return nil, fmt.Errorf("%w: %d of %d bytes", ErrTruncated, len(body), n)
	case int64(len(body)) > n || checksum.Of(body) != want:
		return nil, fmt.Errorf("%w: %016x over %d bytes, expected %s over %d", ErrChecksum, uint64(checksum.Of(body)), len(body), sum, n)
	}
	return body, nil
}

// hexSum is a checksum in JSON: 16 hexadecimal digits, because JSON numbers end at 2^53.
type hexSum checksum.Sum

// MarshalText implements encoding.TextMarshaler.
func (s hexSum) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(s)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *hexSum) UnmarshalText(b []byte) error {
	v, err := parseSum(string(b))
	*s = hexSum(v)
	return err
}

func parseSum(s string) (checksum.Sum, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("%w: checksum %q is not 16 digits", ErrMalformed, s)
	}
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: checksum %q", ErrMalformed, s)
	}
	return checksum.Sum(v), nil
}
