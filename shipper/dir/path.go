package dir

import (
	"fmt"
	"path"
	"strings"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Reserved names. A name of the contract with an element that begins with
// reserved, or ends with partSuffix, is refused.
const (
	reserved   = ".vhdrelay"
	sideDir    = reserved             // beside the page blobs of a directory
	ownDir     = reserved + "-target" // at the root
	partSuffix = reserved + "-part"

	partLen = 200 // bytes; with the suffix well below NAME_MAX
)

// relative is the path of a name below the root.
func relative(name string) (string, error) {
	if err := target.CheckName(name); err != nil {
		return "", err
	}
	return encode(name)
}

// encode maps a name, or the directory part of a prefix, to a path.
func encode(name string) (string, error) {
	var parts []string
	for element := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(element, reserved) || strings.HasSuffix(element, partSuffix) {
			return "", fmt.Errorf("%w: %.80q is reserved", target.ErrName, element)
		}
		for len(element) > partLen {
			parts = append(parts, element[:partLen]+partSuffix)
			element = element[partLen:]
		}
		parts = append(parts, element)
	}
	return path.Join(parts...), nil
}

// grow appends a directory entry to the name its parent stands for: the inverse
// of encode, one entry at a time. A part is not followed by a slash.
func grow(parent, entry string) string {
	if part, ok := strings.CutSuffix(entry, partSuffix); ok {
		return parent + part
	}
	return parent + entry
}

// isReserved: the entry is ours and stands for no name.
func isReserved(entry string) bool {
	return strings.HasPrefix(entry, reserved)
}

// side is the directory of what belongs to the page blob at rel.
func side(rel string) string {
	return path.Join(path.Dir(rel), sideDir, path.Base(rel))
}
