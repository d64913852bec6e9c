package cli

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// Deps is what the commands need from outside.
type Deps struct {
	// Version is the release, as `version` prints it.
	Version        string
	Stdout, Stderr io.Writer
	// Terminal says that Stderr is one, so that progress may be drawn over itself.
	Terminal bool
	// Stdin answers what a command asks; Interactive says that it is a terminal.
	Stdin       io.Reader
	Interactive bool
	// Now is the clock of ages and rates.
	Now func() time.Time

	// Serve runs the appliance with the configuration at a path until ctx ends. One that does not read is config.ErrInvalid,
	// unless it has to be tried again.
	Serve func(ctx context.Context, path string, log *slog.Logger) error

	// Points, Export and Verify work on the target alone: no daemon, no local state. They return *control.Error for what an
	// operator can do something about; Verify returns one with ExitDiffers, and its result, if it found differences.
	Points func(ctx context.Context, t config.Target, vm string) (control.Points, error)
	Export func(ctx context.Context, t config.Target, req ExportRequest, progress func(control.Progress)) (ExportResult, error)
	Verify func(ctx context.Context, t config.Target, req VerifyRequest, progress func(control.Progress)) (VerifyResult, error)

	// Preflight checks the prerequisites of one VM, or of all for "", where no appliance does.
	Preflight func(ctx context.Context, c *config.Config, vm string, progress func(control.Progress)) (control.Preflight, error)

	// JournalCheck and JournalDump open the journal themselves, for when no appliance does.
	JournalCheck func(ctx context.Context, c *config.Config) error
	JournalDump  func(ctx context.Context, c *config.Config, w io.Writer, o control.DumpOptions) error

	// ClearMounts takes away what a crashed appliance left mounted, of one store or of all for "", and with release gives the
	// mount points back as they were before the first start. No appliance may serve them.
	ClearMounts func(c *config.Config, store string, release bool) (control.Unmounted, error)

	// ImageInfo reads an image file's headers, and those of everything it lies over. c, which may be nil, says in which store
	// it is.
	ImageInfo func(c *config.Config, path string) (ImageInfo, error)
}

// ExportRequest asks for the disks of a point as files.
type ExportRequest struct {
	VM string
	// Disk is one disk, "" all of them.
	Disk  string
	Point PointSpec
	// Output is a file for one disk and a directory for all.
	Output string
	// Format is FormatVHD, FormatRaw or FormatVHDX; "" is FormatVHD.
	Format string
	// Force allows to overwrite files.
	Force bool
}

// The formats of an export.
const (
	FormatVHD  = "vhd"
	FormatRaw  = "raw"
	FormatVHDX = "vhdx"
)

// ExportResult is what was written. Time is the point's.
type ExportResult struct {
	VM    string         `json:"vm"`
	Point string         `json:"point"`
	Time  time.Time      `json:"time"`
	Files []ExportedFile `json:"files"`
	// Missing are disks of the VM that the point does not hold: they were in initial replication.
	Missing []string `json:"missing,omitempty"`
}

// ExportedFile is one disk, written. Size is the file's in bytes.
type ExportedFile struct {
	Disk   string `json:"disk"`
	Path   string `json:"path"`
	Format string `json:"format"`
	Size   int64  `json:"size"`
}

// VerifyRequest asks to prove the disks of a point against the checksums in its record.
type VerifyRequest struct {
	VM string
	// Disk is one disk, "" all of them.
	Disk  string
	Point PointSpec
}

// VerifyResult says what was found. Time is the point's.
type VerifyResult struct {
	VM    string         `json:"vm"`
	Point string         `json:"point"`
	Time  time.Time      `json:"time"`
	Disks []VerifiedDisk `json:"disks"`
	// Missing as in ExportResult.
	Missing []string `json:"missing,omitempty"`
}

// VerifiedDisk is one disk, read whole. Size is in bytes, sums are CRC-64/NVME in hex.
type VerifiedDisk struct {
	Disk     string `json:"disk"`
	Size     int64  `json:"size"`
	Recorded string `json:"recorded"`
	Found    string `json:"found"`
	Match    bool   `json:"match"`
	// Problem is why nothing was found: a part that is missing or damaged.
	Problem string `json:"problem,omitempty"`
}

// ImageInfo is what `image info` prints. Sizes are in bytes.
type ImageInfo struct {
	File        string `json:"file"`
	Format      string `json:"format"`
	FileSize    int64  `json:"file_size"`
	VirtualSize int64  `json:"virtual_size"`
	// Allocated is how much of the disk is in this file: by its block table, or for a raw or fixed image by what the file takes.
	Allocated int64 `json:"allocated"`
	// BlockSize is of the block table, 0 if the format has none.
	BlockSize int64        `json:"block_size,omitempty"`
	ID        string       `json:"id,omitempty"`
	Parent    *ImageParent `json:"parent,omitempty"`
	// Chain is the image and everything it lies over, the image itself first; only of one that has a parent.
	Chain []ImageLink `json:"chain,omitempty"`
	// ChainError says why the chain ends early: the missing link, its field and its place, and what to do.
	ChainError string   `json:"chain_error,omitempty"`
	Notes      []string `json:"notes,omitempty"`
}

// ImageLink is one image of a chain. Sizes are in bytes; ID is what its child names it by.
type ImageLink struct {
	File        string `json:"file"`
	Format      string `json:"format"`
	ID          string `json:"id"`
	FileSize    int64  `json:"file_size"`
	VirtualSize int64  `json:"virtual_size"`
	Allocated   int64  `json:"allocated"`
	BlockSize   int64  `json:"block_size"`
}

// ImageParent says what a differencing image lies over.
type ImageParent struct {
	// ID is the unique id of a VHD, the DataWriteGuid of a VHDX.
	ID       string         `json:"id"`
	Locators []ImageLocator `json:"locators"`
}

// ImageLocator is one of the ways to find a parent, as the image has it; Kind is the format's own word.
type ImageLocator struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
}
