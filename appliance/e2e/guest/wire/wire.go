// Package wire is what host and guest say to each other: requests and answers, a line of JSON each, in any order. A
// request names the agent's life it is meant for, so that one left in a buffer over a reboot is not carried out.
package wire

// Request asks for one thing; exactly one of the pointers is set.
type Request struct {
	ID    uint64 `json:"id"`
	Life  string `json:"life"`
	Exec  *Exec  `json:"exec,omitempty"`
	Put   *Put   `json:"put,omitempty"`
	Write *Write `json:"write,omitempty"`
	Sync  *Sync  `json:"sync,omitempty"`
	Close *Close `json:"close,omitempty"`
}

// Exec runs a program.
type Exec struct {
	Args  []string `json:"args"`
	Stdin []byte   `json:"stdin,omitempty"`
}

// Put makes a file with its directories, or replaces one, durably.
type Put struct {
	Path string `json:"path"`
	Data []byte `json:"data"`
	Mode uint32 `json:"mode"`
}

// Write writes a stamped range (package stamp): the guest makes the blocks again from what they say of themselves.
type Write struct {
	File
	ID     uint64 `json:"write"`
	Seq    uint64 `json:"seq"`
	First  int64  `json:"first"`
	Count  uint32 `json:"count"`
	Writer uint32 `json:"writer"`
	Disk   uint32 `json:"disk"`
}

// Sync is an fsync.
type Sync struct{ File }

// Close closes every file that writes and syncs have opened; the next ones open anew.
type Close struct{}

// File names an open file: same path and flags (of open(2)), same file.
type File struct {
	Path  string `json:"path"`
	Flags int    `json:"flags"`
}

// Answer is the answer to a request, or, with ID 0, an agent's first word. Code is the exit code of a program.
type Answer struct {
	ID    uint64 `json:"id"`
	Life  string `json:"life,omitempty"`
	Boot  string `json:"boot,omitempty"` // of a first word: the kernel's boot id
	Code  int    `json:"code,omitempty"`
	Out   []byte `json:"out,omitempty"`
	Diag  []byte `json:"diag,omitempty"`
	Error string `json:"error,omitempty"`
}
