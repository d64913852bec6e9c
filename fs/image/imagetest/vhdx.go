package imagetest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
)

// VHDX makes dynamic and differencing VHDXs in memory, as a hypervisor does.
type VHDX struct {
	B                          []byte
	Virtual, BlockSize, Sector int64
	DataWrite                  [16]byte
	differencing               bool
	sequence                   uint64
}

// Of [MS-VHDX], and where the writer puts what may lie anywhere.
const (
	vhdxHeader       = 64 << 10
	vhdxOtherHeader  = 128 << 10
	vhdxHeaderSize   = 4096
	vhdxRegions      = 192 << 10
	vhdxOtherRegions = 256 << 10
	vhdxTableSize    = 64 << 10
	vhdxFull         = 6
	vhdxPartial      = 7
	mebibyte         = 1 << 20

	VHDXLog      = 1 << 20
	VHDXMetadata = 2 << 20
	VHDXTable    = 3 << 20
	VHDXData     = 4 << 20
)

var le = binary.LittleEndian

// GUIDs in the order of the file.
var (
	vhdxBAT        = fileGUID("2dc27766f62342009d64115e9bfd4a08")
	vhdxMeta       = fileGUID("8b7ca20647904b9ab8fe575f050f886e")
	vhdxParameters = fileGUID("caa16737fa364d43b3b633f0aa44e76b")
	vhdxDiskSize   = fileGUID("2fa54224cd1b4876b2115dbed83bf4b8")
	vhdxDiskID     = fileGUID("beca12abb2e6452393efc309e000c746")
	vhdxLogical    = fileGUID("8141bf1da96f4709ba47f233a8faab5f")
	vhdxPhysical   = fileGUID("cda348c7445d44719cc9e9885251c556")
	vhdxLocator    = fileGUID("a8d35f2db30b454dabf7d3d84834ab0c")
	vhdxLocatorIs  = fileGUID("b04aefb7d19e4a81b78925b8e9445913")
)

// fileGUID turns the digits of a GUID into the order of the file, and back.
func fileGUID(digits string) (g [16]byte) {
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != 16 {
		panic("imagetest: not a GUID: " + digits)
	}
	for to, from := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		g[to] = b[from]
	}
	return g
}

// GUIDText is a GUID of the file as the parent locator has it.
func GUIDText(g [16]byte) string {
	t := fileGUID(hex.EncodeToString(g[:]))
	return fmt.Sprintf("{%x-%x-%x-%x-%x}", t[:4], t[4:6], t[6:8], t[8:10], t[10:])
}

// NewVHDX makes an empty image; parent, if not nil, makes it differencing, its file called name.
func NewVHDX(virtual, block, sector int64, id byte, parent *VHDX, name string) *VHDX {
	w := &VHDX{B: make([]byte, VHDXData), Virtual: virtual, BlockSize: block, Sector: sector, differencing: parent != nil,
		sequence: 1, DataWrite: [16]byte{id, 1, 2, 3, 15: id}}
	copy(w.B, "vhdxfile")
	w.Header([16]byte{})
	w.Header([16]byte{})
	r := w.B[vhdxRegions : vhdxRegions+vhdxTableSize]
	copy(r, "regi")
	le.PutUint32(r[8:], 2)
	for i, e := range []struct {
		id [16]byte
		at uint64
	}{{vhdxBAT, VHDXTable}, {vhdxMeta, VHDXMetadata}} {
		copy(r[16+32*i:], e.id[:])
		le.PutUint64(r[32+32*i:], e.at)
		le.PutUint32(r[40+32*i:], mebibyte)
		le.PutUint32(r[44+32*i:], 1)
	}
	SealVHDX(r)
	copy(w.B[vhdxOtherRegions:], r)
	w.metadata(bytes.Repeat([]byte{id}, 16), nil)
	if parent != nil {
		w.Locate("parent_linkage", GUIDText(parent.DataWrite), "relative_path", `.\`+name, "absolute_win32_path", `C:\vm\`+name)
	}
	return w
}

// Locate writes the parent locator: keys and values, one behind the other.
func (w *VHDX) Locate(pairs ...string) {
	at := bytes.Index(w.B[VHDXMetadata:], vhdxDiskID[:])
	id := bytes.Clone(w.B[VHDXMetadata+int(le.Uint32(w.B[VHDXMetadata+at+16:])):][:16])
	w.metadata(id, parentLocator(pairs))
}

// metadata writes the metadata region.
func (w *VHDX) metadata(id, locator []byte) {
	flags := uint32(0)
	if locator != nil {
		flags = 2
	}
	m := w.B[VHDXMetadata : VHDXMetadata+mebibyte]
	clear(m)
	copy(m, "metadata")
	at := vhdxTableSize
	for _, it := range []struct {
		id [16]byte
		b  []byte
	}{
		{vhdxParameters, le.AppendUint32(le.AppendUint32(nil, uint32(w.BlockSize)), flags)}, {vhdxDiskSize, le.AppendUint64(nil, uint64(w.Virtual))},
		{vhdxLogical, le.AppendUint32(nil, uint32(w.Sector))}, {vhdxPhysical, le.AppendUint32(nil, 4096)},
		{vhdxDiskID, id}, {vhdxLocator, locator},
	} {
		if len(it.b) == 0 {
			continue
		}
		n := le.Uint16(m[10:])
		e := m[32+32*int(n):]
		copy(e, it.id[:])
		le.PutUint32(e[16:], uint32(at))
		le.PutUint32(e[20:], uint32(len(it.b)))
		le.PutUint32(e[24:], 4)
		copy(m[at:], it.b)
		at += len(it.b)
		le.PutUint16(m[10:], n+1)
	}
}

// SealVHDX gives a structure its CRC-32C.
func SealVHDX(b []byte) {
	clear(b[4:8])
	le.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// Header writes the next header in the place of the older one; log names the one to replay.
func (w *VHDX) Header(log [16]byte) {
	w.sequence++
	h := w.B[vhdxHeader+int(w.sequence%2)*(vhdxOtherHeader-vhdxHeader):][:vhdxHeaderSize]
	clear(h)
	copy(h, "head")
	le.PutUint64(h[8:], w.sequence)
	copy(h[32:], w.DataWrite[:])
	copy(h[48:], log[:])
	le.PutUint16(h[66:], 1)
	le.PutUint32(h[68:], mebibyte)
	le.PutUint64(h[72:], VHDXLog)
	SealVHDX(h)
}

func parentLocator(pairs []string) []byte {
	b := append(bytes.Clone(vhdxLocatorIs[:]), 0, 0, byte(len(pairs)/2), 0)
	texts := []byte(nil)
	base := len(b) + len(pairs)/2*12
	for i := 0; i < len(pairs); i += 2 {
		k, v := encode16(pairs[i], le), encode16(pairs[i+1], le)
		b = le.AppendUint32(b, uint32(base+len(texts)))
		b = le.AppendUint32(b, uint32(base+len(texts)+len(k)))
		b = le.AppendUint16(le.AppendUint16(b, uint16(len(k))), uint16(len(v)))
		texts = append(append(texts, k...), v...)
	}
	return append(b, texts...)
}

// Ratio is how many blocks a chunk has.
func (w *VHDX) Ratio() int64 { return 1 << 23 * w.Sector / w.BlockSize }

func (w *VHDX) entry(block int64) []byte { return w.B[VHDXTable+(block+block/w.Ratio())*8:] }

// Get is the state of a block and where its data lies.
func (w *VHDX) Get(block int64) (state uint64, at int64) {
	e := le.Uint64(w.entry(block))
	return e & 7, int64(e >> 20 << 20)
}

// Set writes the entry of a block.
func (w *VHDX) Set(block int64, state uint64, at int64) {
	le.PutUint64(w.entry(block), state|uint64(at))
}

func (w *VHDX) append(n int64) int64 {
	at := int64(len(w.B))
	w.B = append(w.B, make([]byte, (n+mebibyte-1)/mebibyte*mebibyte)...)
	return at
}

// Bits is the sector bitmap of a block, allocated with its chunk.
func (w *VHDX) Bits(block int64) []byte {
	chunk := block / w.Ratio()
	e := (chunk*(w.Ratio()+1) + w.Ratio()) * 8
	if le.Uint64(w.B[VHDXTable+e:]) == 0 {
		at := w.append(mebibyte)
		le.PutUint64(w.B[VHDXTable+e:], vhdxFull|uint64(at))
	}
	at := int64(le.Uint64(w.B[VHDXTable+e:]) >> 20 << 20)
	n := w.BlockSize / w.Sector / 8
	return w.B[at+block%w.Ratio()*n:][:n]
}

// Write writes whole sectors. In a differencing image a block that was absent becomes partly present.
func (w *VHDX) Write(off int64, data []byte) {
	for ; len(data) > 0; off, data = off+w.Sector, data[w.Sector:] {
		block, in := off/w.BlockSize, off%w.BlockSize
		state, at := w.Get(block)
		if state != vhdxFull && state != vhdxPartial {
			at = w.append(w.BlockSize)
			if next := uint64(vhdxFull); w.differencing && state == 0 {
				next = vhdxPartial
				clear(w.Bits(block))
				w.Set(block, next, at)
			} else {
				w.Set(block, next, at)
			}
			state, _ = w.Get(block)
		}
		copy(w.B[at+in:], data[:w.Sector])
		if state == vhdxPartial {
			w.Bits(block)[in/w.Sector/8] |= 1 << (in / w.Sector % 8)
		}
	}
}

// Move puts a block at the end of the file.
func (w *VHDX) Move(block int64) {
	if state, at := w.Get(block); state >= vhdxFull {
		to := w.append(w.BlockSize)
		copy(w.B[to:], w.B[at:at+w.BlockSize])
		w.Set(block, state, to)
	}
}
