package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// errFormat is an answer of the kernel that this program does not understand.
var errFormat = errors.New("fanotify event of an unknown layout")

// rawEvent is struct fanotify_event_metadata with its FAN_EVENT_INFO_TYPE_DFID_NAME record (fanotify(7)).
type rawEvent struct {
	mask uint64
	pid  int
	dir  string // handle of the directory, see handleKey
	name string
}

// Sizes and numbers of <linux/fanotify.h>.
const (
	metadataLen     = 24
	metadataVersion = 3
	infoHeaderLen   = 4
	fsidLen         = 8
	handleHeaderLen = 8
	infoDFIDName    = 2
)

// parse takes one event off the front of what was read.
func parse(p []byte) (e rawEvent, rest []byte, err error) {
	if len(p) < metadataLen {
		return e, nil, fmt.Errorf("%w: %d bytes", errFormat, len(p))
	}
	length, header := int(binary.NativeEndian.Uint32(p)), int(binary.NativeEndian.Uint16(p[6:]))
	if p[4] != metadataVersion || length > len(p) || header < metadataLen || length < header {
		return e, nil, fmt.Errorf("%w: version %d, %d of %d bytes", errFormat, p[4], length, len(p))
	}
	e.mask, e.pid = binary.NativeEndian.Uint64(p[8:]), int(int32(binary.NativeEndian.Uint32(p[20:])))
	err = e.parseInfo(p[header:length])
	return e, p[length:], err
}

// parseInfo finds the directory and the name among the records behind the metadata.
func (e *rawEvent) parseInfo(p []byte) error {
	for len(p) >= infoHeaderLen {
		kind, length := p[0], int(binary.NativeEndian.Uint16(p[2:]))
		if length < infoHeaderLen || length > len(p) {
			return fmt.Errorf("%w: a record of %d in %d bytes", errFormat, length, len(p))
		}
		record := p[infoHeaderLen:length]
		p = p[length:]
		if kind != infoDFIDName {
			continue
		}
		if len(record) < fsidLen+handleHeaderLen {
			return fmt.Errorf("%w: a handle in %d bytes", errFormat, len(record))
		}
		size, handle := int(binary.NativeEndian.Uint32(record[fsidLen:])), record[fsidLen+handleHeaderLen:]
		if size > len(handle) {
			return fmt.Errorf("%w: a handle of %d in %d bytes", errFormat, size, len(handle))
		}
		e.dir = handleKey(int32(binary.NativeEndian.Uint32(record[fsidLen+4:])), handle[:size])
		name, _, _ := bytes.Cut(handle[size:], []byte{0})
		e.name = string(name)
	}
	return nil
}

// handleKey makes a file handle the key of a map.
func handleKey(kind int32, handle []byte) string {
	return string(binary.NativeEndian.AppendUint32(nil, uint32(kind))) + string(handle)
}
