package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
)

// written is an image whose disk a guest writes.
type written struct {
	name, title     string
	driver, options string // of qemu-img create
}

// The first is what the others are held against.
var writtenImages = []written{
	{"fixed.vhd", "fixed VHD", "vpc", "subformat=fixed,force_size=on"},
	{"dynamic.vhd", "dynamic VHD", "vpc", "subformat=dynamic,force_size=on"},
	{"dynamic.vhdx", "dynamic VHDX", "vhdx", "subformat=dynamic,block_size=32M"},
}

// formats compares a guest's writes to a dynamic VHD and a dynamic VHDX with those to a fixed VHD, at one mount, tracked.
// All blocks are allocated: what qemu does to allocate one costs the same everywhere, and is not ours. Therefore fio writes
// to the file itself, at the places where the guest's data is; the sector bitmaps of a dynamic VHD, one sector in 4,097, lie
// between them and are written as well.
func (b *bench) formats() (rows []row, err error) {
	size := b.size(matrixSize)
	s, err := b.configureStore("formats", rig.Options{}, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	for _, w := range writtenImages {
		if err := b.allocate(w, s.Source, size); err != nil {
			return nil, err
		}
	}
	if err := s.Start(b.ctx); err != nil {
		return nil, err
	}
	var variants []*variant
	for _, w := range writtenImages {
		v, err := b.writtenVariant(w, s)
		if err != nil {
			return nil, err
		}
		variants = append(variants, v)
	}
	if err := b.sameCaches(variants); err != nil {
		return nil, err
	}
	for _, j := range matrixJobs() {
		if !j.writes() {
			continue
		}
		f, err := b.interleaveFormats(j, variants, size)
		if err != nil {
			return rows, err
		}
		rows = append(rows, formatRows(j, f)...)
	}
	return rows, nil
}

// allocate makes an image with all of its blocks, in a directory of its own.
func (b *bench) allocate(w written, source string, size int64) error {
	dir := filepath.Join(source, w.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, w.name)
	_, err := b.command("qemu-img", "create", "-q", "-f", w.driver, "-o", w.options, path, fmt.Sprint(size))
	if err == nil {
		_, err = b.command("qemu-io", "-f", w.driver, "-t", "unsafe", "-c", fmt.Sprintf("write -q -P 165 0 %d", size), path)
	}
	return err
}

// writtenVariant is an image at the mount, initially replicated, each byte of its disk written at the mount: its regions
// are active and its blocks in the change set.
func (b *bench) writtenVariant(w written, s *store) (*variant, error) {
	v := &variant{name: w.name, file: filepath.Join(s.Mount, w.name, w.name), backing: filepath.Join(s.Source, w.name, w.name)}
	from, to, err := payload(v.backing)
	if err != nil {
		return nil, err
	}
	v.offset = from
	if _, err := s.Sync(b.ctx, w.name); err != nil {
		return nil, err
	}
	_, err = b.command("dd", "if=/dev/urandom", "of="+v.file, "bs=1M", fmt.Sprintf("seek=%d", from), fmt.Sprintf("count=%d", to-from),
		"iflag=count_bytes,fullblock", "oflag=seek_bytes", "conv=notrunc,fsync", "status=none")
	return v, err
}

var errScattered = errors.New("the blocks of the image do not lie one behind the other")

// payload is where the disk's bytes lie in a file whose blocks were allocated in order.
func payload(path string) (from, to int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	i, err := formats.Open(f, info.Size())
	if err != nil {
		return 0, 0, err
	}
	if i.Table == nil {
		return 0, i.Info.VirtualSize, nil
	}
	const most = 4096 // bytes of bitmaps and alignment between two blocks
	for e := range i.Table.Extents(0, i.Info.VirtualSize) {
		at := int64(e.File)
		if e.From != image.FromFile || to != 0 && (at < to || at > to+most) {
			return 0, 0, fmt.Errorf("%w: %s at %d", errScattered, path, e.Disk)
		}
		if to == 0 {
			from = at
		}
		to = at + e.Len
	}
	return from, to, nil
}

// interleaveFormats runs one job on all images in turn. Twice three rounds balance an odd number of them.
func (b *bench) interleaveFormats(j job, variants []*variant, size int64) (figures, error) {
	full := 2 * len(variants)
	return b.inTurns(j, variants, size, (b.rounds+full-1)/full*full, b.turn, func(round int, f figures) {
		b.progress("%s, round %d: dynamic VHD/fixed %.2f, VHDX/fixed %.2f", j.name, round+1,
			f[writtenImages[1].name][round]/f[writtenImages[0].name][round], f[writtenImages[2].name][round]/f[writtenImages[0].name][round])
	})
}

func formatRows(j job, f figures) (rows []row) {
	fixed := f[writtenImages[0].name]
	for _, w := range writtenImages[1:] {
		rows = append(rows, ratioRow(j.name+" to a "+w.title, writtenImages[0].title, over(f[w.name], fixed), atLeast(0.97),
			fmt.Sprintf("%s, fixed %s", rate(median(f[w.name]), j.bandwidth()), rate(median(fixed), j.bandwidth()))))
	}
	return rows
}
