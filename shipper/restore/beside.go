package restore

import (
	"fmt"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// maxFileName is how long a name of a file may be, in bytes (NAME_MAX of Linux).
const maxFileName = 255

// beside is the path of a file of an unfinished export of path. The output's own name is
// cut, and told apart by its checksum, where it leaves no room: a disk's name may be as
// long as the file system takes.
func beside(path, suffix string) string {
	name := filepath.Base(path)
	room := maxFileName - len(CursorSuffix) - len(durable.TempSuffix)
	if len(name) <= room {
		return path + suffix
	}
	tag := fmt.Sprintf("~%016x", uint64(checksum.Of([]byte(name))))
	return filepath.Join(filepath.Dir(path), name[:room-len(tag)]+tag+suffix)
}
