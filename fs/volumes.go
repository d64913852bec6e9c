package fs

import "github.com/vhdrelay/vhdrelay/journal/extent"

// Volumes is what fs needs to know about disks: which image files are tracked, and by what. Paths are relative to the
// store's source, slash separated, without a leading slash.
//
// Methods may block for local I/O, never for the network: a guest waits for them.
type Volumes interface {
	// Attach is called the first time an image path is seen (lookup, create, rename to an image's name), before the
	// request that showed it is answered. No request on this file runs meanwhile. A nil Tracker means the file is
	// served untracked; it is asked again when the file gets another image name or is forgotten and seen anew.
	Attach(path string, id Identity) Tracker

	// Renamed and Removed are told after the fact, before the request is answered. The Tracker of the old path goes on
	// until the file's last close. Removed also tells of an image that another file was renamed over.
	//
	// newPath may be no image's name: then the file is no disk any more from its last close on, which Closed tells, and
	// what is written to it afterwards goes unseen. When it gets an image's name again Attach is called, and must take it
	// for changed. oldPath may be none either, if the file was open all the time.
	Renamed(oldPath, newPath string, id Identity)
	Removed(path string, id Identity)

	// Closed tells that the Tracker of a file that was renamed to a name that is no image's is not asked any more: nobody
	// has it open. No change of the file runs meanwhile.
	Closed(path string, id Identity)
}

// Identity says which file a path meant: a path can be renamed, an inode number can be reused.
type Identity struct {
	Dev, Ino uint64
	Gen      uint64 // inode generation (FS_IOC_GETVERSION), 0 where the file system has none
}

// Tracker is told of every change of an image before and after it happens. Calls for different ranges of one file come
// in parallel; journal.Disk is one.
type Tracker interface {
	// Begin is called before the change touches the backing file. An error makes the operation fail, with EFBIG if it wraps
	// that and else with EIO, and then neither the change nor End happens.
	Begin(c extent.Change) (extent.Pass, error)

	// End is called after it, with what Begin returned and with what the operation returned. After an error any part
	// of the range may have changed.
	End(c extent.Change, p extent.Pass, err error)
}
