package appliance

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	dynamic "github.com/vhdrelay/vhdrelay/fs/image/vhd"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
)

// ImageInfo reads an image file's headers, and the block table of one that has a table.
func ImageInfo(path string) (cli.ImageInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return cli.ImageInfo{}, control.NotFound("check the path", "%v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return cli.ImageInfo{}, err
	}
	info, err := image.Probe(path, f, st.Size())
	if err != nil && !errors.Is(err, image.ErrUnsupported) {
		return cli.ImageInfo{}, badImage(path, err)
	}
	out := cli.ImageInfo{File: path}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		out.Allocated = s.Blocks * 512 // stat(2): the unit is 512 bytes, whatever the file system's is
	}
	unprotected := err
	if info, err = translated(f, info, &out); err != nil {
		return cli.ImageInfo{}, badImage(path, err)
	}
	out.Format, out.FileSize, out.VirtualSize, out.Notes = string(info.Format), st.Size(), info.VirtualSize, info.Notes
	if info.ID != [16]byte{} {
		out.ID = uuid.UUID(info.ID).String()
	}
	if unprotected != nil {
		out.Notes = append(out.Notes, unprotected.Error())
	}
	return out, nil
}

// translated opens an image whose disk is behind a block table and adds what that says; others it leaves as they are.
func translated(r io.ReaderAt, info image.Info, out *cli.ImageInfo) (image.Info, error) {
	var table *image.Table
	var link *image.Link
	switch info.Format {
	case image.VHDDynamic, image.VHDDifferencing:
		i, err := dynamic.Open(r, info.FileSize)
		if err != nil {
			return info, err
		}
		info, table, link = i.Info, i.Table, i.Link
	case image.VHDX, image.VHDXFixed, image.VHDXDynamic, image.VHDXDifferencing:
		i, err := vhdx.Open(r, info.FileSize)
		if err != nil {
			return info, err
		}
		info, table, link = i.Info, i.Table, i.Link
	default:
		return info, nil
	}
	out.BlockSize, out.Allocated = table.BlockSize, table.Allocated()
	if link != nil {
		out.Parent = &cli.ImageParent{ID: parentID(info.Format, link.ID)}
		for _, l := range link.Locators {
			out.Parent.Locators = append(out.Parent.Locators, cli.ImageLocator{Kind: l.Kind, Path: l.Path})
		}
	}
	return info, nil
}

// parentID prints the id of a parent as tools do: a GUID of a VHDX has its first three groups turned around in the file.
func parentID(format image.Format, id [16]byte) string {
	if format == image.VHDXDifferencing {
		return vhdx.GUIDText(id)
	}
	return uuid.UUID(id).String()
}

func badImage(path string, err error) error {
	if e := (*image.Error)(nil); errors.As(err, &e) && e.Path == "" {
		named := *e
		named.Path = path
		err = &named
	}
	return &control.Error{Code: "bad-image", Message: err.Error(), Action: "repair or replace the image", Exit: control.ExitFailed, Err: err}
}
