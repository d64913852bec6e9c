package catalog

import (
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// ErrName is a blob name that this package did not make.
var ErrName = errors.New("not a name of ours")

// Names are stored: what is below may never change.
//
//	<vm>/vm.json
//	<vm>/points/<generation>-<epoch>.json
//	<vm>/pins/<id>.json
//	<vm>/failover/<id>/<disk>.vhd
//	<vm>/<disk>/replica.vhd
//	<vm>/<disk>/log/<generation>-<epoch>
//
// <vm>, <disk> and <id> are any non-empty bytes, encoded so that no service and
// no file system has an opinion about them: ASCII letters, digits, '-', '_' and
// '.' stand for themselves, every other byte is '~' and two upper-case hex
// digits. A dot that opens or ends the name is encoded too, and so is the first
// byte of a name that the layout uses itself. What would be longer than
// maxPlain that way is "~~" and the base32 (extended hex, lower case, no
// padding) of the bytes, cut into path elements of maxPlain characters, each but
// the last ending in '~'. So two names of 255 bytes, the longest a Linux file
// system has, fit into one blob name of less than 1,024 characters, and each
// path element into the 255 bytes of a file name.
const (
	vmDoc       = "vm.json"
	pointsDir   = "points"
	pinsDir     = "pins"
	failoverDir = "failover"
	logDir      = "log"
	replicaBlob = "replica.vhd"

	maxPlain   = 200
	escapeByte = '~'
	longMark   = "~~"
	emptyMark  = "~0"
)

var longEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)

// EncodeName makes any name safe as one or more path elements of a blob name.
func EncodeName(name string) string {
	if name == "" {
		return emptyMark
	}
	reserved := name == vmDoc || name == pointsDir || name == pinsDir || name == failoverDir
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		edge := i == 0 || i == len(name)-1
		if isPlain(name[i]) && (name[i] != '.' || !edge) && (i > 0 || !reserved) {
			b.WriteByte(name[i])
		} else {
			fmt.Fprintf(&b, "%c%02X", escapeByte, name[i])
		}
	}
	if b.Len() <= maxPlain {
		return b.String()
	}
	return encodeLong(name)
}

func isPlain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
}

func encodeLong(name string) string {
	rest := longMark + strings.ToLower(longEncoding.EncodeToString([]byte(name)))
	var b strings.Builder
	for len(rest) > maxPlain {
		b.WriteString(rest[:maxPlain] + string(escapeByte) + "/")
		rest = rest[maxPlain:]
	}
	b.WriteString(rest)
	return b.String()
}

// DecodeName takes the encoded name off the front of a blob name and returns
// what follows it, without the slash between.
func DecodeName(blob string) (name, rest string, err error) {
	encoded := blob
	if strings.HasPrefix(blob, longMark) {
		name, rest, err = decodeLong(blob)
	} else {
		encoded, rest, _ = strings.Cut(blob, "/")
		name, err = decodePlain(encoded)
	}
	if err == nil && !strings.HasPrefix(blob, EncodeName(name)) {
		err = ErrName // another spelling of the same name: two names would be one VM
	}
	if err != nil {
		return "", "", fmt.Errorf("%w: %q", ErrName, blob)
	}
	return name, rest, nil
}

func decodePlain(s string) (string, error) {
	if s == emptyMark {
		return "", nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != escapeByte {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", ErrName
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi < 0 || lo < 0 {
			return "", ErrName
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	if b.Len() == 0 {
		return "", ErrName
	}
	return b.String(), nil
}

func unhex(c byte) int { return strings.IndexByte("0123456789ABCDEF", c) }

func decodeLong(blob string) (name, rest string, err error) {
	var digits strings.Builder
	rest = blob
	for more := true; more; {
		var element string
		element, rest, _ = strings.Cut(rest, "/")
		more = len(element) > len(longMark) && element[len(element)-1] == escapeByte
		digits.WriteString(strings.TrimSuffix(element, string(escapeByte)))
	}
	raw, err := longEncoding.DecodeString(strings.ToUpper(strings.TrimPrefix(digits.String(), longMark)))
	return string(raw), rest, err
}

// CheckName tells whether every blob of a disk has a name the target accepts.
// It holds for every VM and disk key of at most 255 bytes.
func CheckName(vm, disk string) error {
	longest := SegmentName(vm, disk, PointID{^uint64(0), ^uint64(0)})
	if len(longest) > target.MaxName {
		return fmt.Errorf("%w: blob name of %d characters, at most %d: rename the VM or the disk", target.ErrName, len(longest), target.MaxName)
	}
	return nil
}

func vmPrefix(vm string) string         { return EncodeName(vm) + "/" }
func diskPrefix(vm, disk string) string { return vmPrefix(vm) + EncodeName(disk) + "/" }

// VMDocName is the name of vm.json.
func VMDocName(vm string) string { return vmPrefix(vm) + vmDoc }

// RecordsPrefix is what the names of all records of a VM start with.
func RecordsPrefix(vm string) string { return vmPrefix(vm) + pointsDir + "/" }

// RecordName is the name of a point's record.
func RecordName(vm string, id PointID) string { return RecordsPrefix(vm) + id.String() + ".json" }

// PinsPrefix is what the names of all pins of a VM start with.
func PinsPrefix(vm string) string { return vmPrefix(vm) + pinsDir + "/" }

// PinName is the name of a reader's pin.
func PinName(vm, id string) string { return PinsPrefix(vm) + EncodeName(id) + ".json" }

// ReplicaName is the name of a disk's page blob. disk is the id of the disk.
func ReplicaName(vm, disk string) string { return diskPrefix(vm, disk) + replicaBlob }

// SegmentsPrefix is what the names of all segments of a disk start with.
func SegmentsPrefix(vm, disk string) string { return diskPrefix(vm, disk) + logDir + "/" }

// SegmentName is the name of the segment of one epoch of a disk.
func SegmentName(vm, disk string, id PointID) string {
	return SegmentsPrefix(vm, disk) + id.String()
}

// FailoverName is the name of a point of a disk that is made whole.
func FailoverName(vm, id, disk string) string {
	return vmPrefix(vm) + failoverDir + "/" + EncodeName(id) + "/" + EncodeName(disk) + ".vhd"
}

// ParseSegment takes the name of a segment apart.
func ParseSegment(name string) (vm, disk string, id PointID, err error) {
	vm, rest, err := DecodeName(name)
	if err != nil {
		return "", "", PointID{}, err
	}
	if disk, rest, err = DecodeName(rest); err != nil {
		return "", "", PointID{}, err
	}
	number, ok := strings.CutPrefix(rest, logDir+"/")
	if !ok {
		return "", "", PointID{}, fmt.Errorf("%w: %q is no segment", ErrName, name)
	}
	id, err = ParsePointID(number)
	return vm, disk, id, err
}

// ParseRecord returns the point whose record has this name.
func ParseRecord(vm, name string) (PointID, error) {
	number, ok := strings.CutPrefix(name, RecordsPrefix(vm))
	number, isJSON := strings.CutSuffix(number, ".json")
	if !ok || !isJSON {
		return PointID{}, fmt.Errorf("%w: %q is no record", ErrName, name)
	}
	return ParsePointID(number)
}
