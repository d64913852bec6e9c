package fs

// Opcode is a request of the FUSE protocol (include/uapi/linux/fuse.h) and who answers it.
type Opcode struct {
	Number int
	Name   string
	Verb   string // the method of RawFileSystem that go-fuse calls for it, which has the verdict; empty: none
	Note   string // without a verb: what happens
}

// Opcodes lists every request that go-fuse knows. A test compares it with go-fuse's own table: one that it adds, or
// answers in another way, fails there until somebody has thought about it here. What is not in it is ENOSYS.
var Opcodes = []Opcode{
	{1, "LOOKUP", "Lookup", ""},
	{2, "FORGET", "Forget", ""},
	{3, "GETATTR", "GetAttr", ""},
	{4, "SETATTR", "SetAttr", ""},
	{5, "READLINK", "Readlink", ""},
	{6, "SYMLINK", "Symlink", ""},
	{8, "MKNOD", "Mknod", ""},
	{9, "MKDIR", "Mkdir", ""},
	{10, "UNLINK", "Unlink", ""},
	{11, "RMDIR", "Rmdir", ""},
	{12, "RENAME", "Rename", ""},
	{13, "LINK", "Link", ""},
	{14, "OPEN", "Open", ""},
	{15, "READ", "Read", ""},
	{16, "WRITE", "Writev", ""},
	{17, "STATFS", "StatFs", ""},
	{18, "RELEASE", "Release", ""},
	{20, "FSYNC", "Fsync", ""},
	{21, "SETXATTR", "SetXAttr", ""},
	{22, "GETXATTR", "GetXAttr", ""},
	{23, "LISTXATTR", "ListXAttr", ""},
	{24, "REMOVEXATTR", "RemoveXAttr", ""},
	{25, "FLUSH", "Flush", ""},
	{26, "INIT", "", "go-fuse agrees on capabilities: those it wants, ours added, passthrough taken out"},
	{27, "OPENDIR", "OpenDir", ""},
	{28, "READDIR", "ReadDir", ""},
	{29, "RELEASEDIR", "ReleaseDir", ""},
	{30, "FSYNCDIR", "FsyncDir", ""},
	{31, "GETLK", "GetLk", ""},
	{32, "SETLK", "SetLk", ""},
	{33, "SETLKW", "SetLkw", ""},
	{34, "ACCESS", "Access", ""},
	{35, "CREATE", "Create", ""},
	{36, "INTERRUPT", "", "go-fuse closes the request's cancel channel, which nothing of ours waits for: local I/O ends"},
	{37, "BMAP", "", "ENOSYS; the kernel asks it of fuseblk only"},
	{38, "DESTROY", "", "the connection ends"},
	{39, "IOCTL", "Ioctl", ""},
	{40, "POLL", "", "ENOSYS: every file is always ready"},
	{41, "NOTIFY_REPLY", "", "answers a question that is never asked"},
	{42, "BATCH_FORGET", "Forget", ""},
	{43, "FALLOCATE", "Fallocate", ""},
	{44, "READDIRPLUS", "ReadDirPlus", ""},
	{45, "RENAME2", "Rename", ""},
	{46, "LSEEK", "Lseek", ""},
	{47, "COPY_FILE_RANGE", "CopyFileRange", ""},
	{48, "SETUPMAPPING", "", "ENOSYS; DAX of virtiofs only"},
	{49, "REMOVEMAPPING", "", "ENOSYS; DAX of virtiofs only"},
	{50, "SYNCFS", "", "ENOSYS; the kernel sends it to virtiofs and fuseblk only, so syncfs(2) of the mount syncs nothing"},
	{51, "TMPFILE", "Tmpfile", ""},
	{52, "STATX", "Statx", ""},
	{53, "COPY_FILE_RANGE_64", "", "ENOSYS: the kernel reads and writes instead"},
}
