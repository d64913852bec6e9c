package fs

// Verdict says what the shim does with a verb.
type Verdict string

// The verdicts.
const (
	Tracks  Verdict = "tracks"  // may change a disk's bytes: lies between Begin and End, or calls what does
	Tells   Verdict = "tells"   // changes which file is which disk: the Volumes hear of it before it is answered
	Passes  Verdict = "passes"  // goes to the backing file system, changes no byte of a disk
	Refuses Verdict = "refuses" // is answered with an error
	Serves  Verdict = "serves"  // concerns the server itself and touches no file
)

// Verb is one method of go-fuse's RawFileSystem.
type Verb struct {
	Name    string
	Verdict Verdict
	Note    string
}

// Verbs lists every verb there is. A test compares it with the interface: a verb that go-fuse adds has no verdict until
// somebody has thought about it here.
var Verbs = []Verb{
	{"Write", Tracks, "as Writev, which go-fuse asks first"},
	{"Writev", Tracks, "O_DSYNC, O_SYNC and RWF_DSYNC are synced before the answer"},
	{"Fallocate", Tracks, "punch is a discard, zero range a zero, growing a truncate; collapse and insert are refused"},
	{"SetAttr", Tracks, "a size is a truncate; owner, mode and times pass"},
	{"Open", Tracks, "O_TRUNC is a truncate; no handle"},
	{"Create", Tracks, "as Open; a new image is attached before the answer"},
	{"Tmpfile", Tracks, "as Open; no disk until it is linked to an image's name"},

	{"Lookup", Tells, "the first sight of an image attaches it; nested mounts are refused with EXDEV"},
	{"ReadDirPlus", Tells, "looks up what it lists"},
	{"Rename", Tells, "also of directories with disks, with NOREPLACE and EXCHANGE; WHITEOUT is refused, and a hard link to an image's name"},
	{"Unlink", Tells, "an open disk goes on until the last release"},
	{"Link", Tells, "refused with EPERM for disks and for image names; an O_TMPFILE may get an image's name"},
	{"Mknod", Tells, "a regular file may have an image's name"},
	{"Release", Tells, "after the last one the tracker of a moved disk is looked for anew"},

	{"Read", Passes, ""},
	{"Lseek", Passes, "SEEK_DATA and SEEK_HOLE"},
	{"Fsync", Passes, "a failure stays until the last release"},
	{"FsyncDir", Passes, ""},
	{"GetAttr", Passes, ""},
	{"Statx", Passes, "the time of birth"},
	{"StatFs", Passes, ""},
	{"Mkdir", Passes, ""},
	{"Rmdir", Passes, ""},
	{"Symlink", Passes, ""},
	{"Readlink", Passes, ""},
	{"OpenDir", Passes, "no handle"},
	{"ReadDir", Passes, "the offset is the file system's own cookie"},
	{"ReleaseDir", Passes, ""},
	{"GetXAttr", Passes, "user.vhdrelay.* is hidden"},
	{"ListXAttr", Passes, "user.vhdrelay.* is hidden"},
	{"SetXAttr", Passes, "user.vhdrelay.* is refused with EPERM; ACLs count"},
	{"RemoveXAttr", Passes, "user.vhdrelay.* is refused with EPERM"},

	{"CopyFileRange", Refuses, "ENOSYS: the kernel reads and writes instead, and that is tracked"},
	{"Ioctl", Refuses, "ENOTTY; FICLONE and the like are EOPNOTSUPP in the kernel already"},
	{"GetLk", Refuses, "never asked: locks stay in the kernel"},
	{"SetLk", Refuses, "never asked: locks stay in the kernel"},
	{"SetLkw", Refuses, "never asked: locks stay in the kernel"},
	{"Access", Refuses, "ENOSYS: default_permissions"},
	{"Flush", Refuses, "ENOSYS: nothing to write at close"},

	{"Forget", Serves, ""},
	{"Init", Serves, ""},
	{"OnUnmount", Serves, ""},
	{"SetDebug", Serves, ""},
	{"String", Serves, ""},
}
