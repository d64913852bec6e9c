package appliance

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	dynamic "github.com/vhdrelay/vhdrelay/fs/image/vhd"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
)

// ImageInfo reads an image file's headers, the block table of one that has a table, and the chain of one that has a parent.
func ImageInfo(c *config.Config, path string) (cli.ImageInfo, error) {
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
	if info, err = translated(f, info, &out); err != nil {
		return cli.ImageInfo{}, badImage(path, err)
	}
	if out.Parent != nil {
		chainOf(c, path, &out)
	}
	out.Format, out.FileSize, out.VirtualSize, out.Notes = string(info.Format), st.Size(), info.VirtualSize, info.Notes
	if info.ID != [16]byte{} {
		out.ID = uuid.UUID(info.ID).String()
	}
	if _, err := formats.Probe(path, f, st.Size()); errors.Is(err, image.ErrUnsupported) {
		out.Notes = append(out.Notes, err.Error())
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

// chainOf looks for everything that a differencing image lies over, in the store that holds it.
func chainOf(c *config.Config, path string, out *cli.ImageInfo) {
	root, name := storeOf(c, path)
	dir, err := chain.OpenDir(root)
	if err != nil {
		out.ChainError = err.Error()
		return
	}
	defer dir.Close()
	links, err := chain.Walk(dir, name)
	if err != nil {
		out.ChainError = err.Error()
	}
	for _, m := range links {
		out.Chain = append(out.Chain, cli.ImageLink{
			File: m.Name, Format: string(m.Info.Format), ID: m.IDText(), FileSize: m.Stat.Size,
			VirtualSize: m.Info.VirtualSize, Allocated: m.Table.Allocated(), BlockSize: m.Table.BlockSize,
		})
	}
}

// storeOf is the source of the store that holds a file, or the mount of it, and the file's name there; without one its own
// directory.
func storeOf(c *config.Config, path string) (root, name string) {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if c != nil {
		for _, s := range c.Stores {
			for _, root := range []string{s.Source, s.Mount} {
				if rel, err := filepath.Rel(root, path); err == nil && filepath.IsLocal(rel) {
					return root, filepath.ToSlash(rel)
				}
			}
		}
	}
	return filepath.Dir(path), filepath.Base(path)
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
