package stage

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// errNoRoom says that a block table would have to move, which these tools do not.
var errNoRoom = errors.New("the block table has no room for a disk of this size")

const sectorSize = 512

// growVHD makes the disk of a dynamic VHD larger as XCP-ng's vhd-util does it while the block table's last sector has
// room: more entries in the header, and a new size in both footers.
func growVHD(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const headerSize = 1024
	b := make([]byte, sectorSize+headerSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	footer, header := b[:sectorSize], b[sectorSize:]
	be := binary.BigEndian
	entries, block := int64(be.Uint32(header[28:])), int64(be.Uint32(header[32:]))
	wanted := (size + block - 1) / block
	const perSector = sectorSize / 4
	if room := (entries + perSector - 1) / perSector * perSector; wanted > room {
		return fmt.Errorf("%w: %d entries of %d", errNoRoom, wanted, room)
	}
	be.PutUint32(header[28:], uint32(wanted))
	sealVHD(header, 36)
	be.PutUint64(footer[48:], uint64(size))
	sealVHD(footer, 64)
	end, err := f.Seek(-sectorSize, io.SeekEnd)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	_, err2 := f.WriteAt(footer, end)
	return errors.Join(err, err2, f.Close())
}

// sealVHD writes the checksum of a footer or header at off.
func sealVHD(b []byte, off int) {
	binary.BigEndian.PutUint32(b[off:], 0)
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	binary.BigEndian.PutUint32(b[off:], ^sum)
}

// Of [MS-VHDX]: where the region table lies, and GUIDs as they are in the file.
const (
	vhdxRegions  = 192 << 10
	vhdxBAT      = "6677c22d23f600429d64115e9bfd4a08"
	vhdxMetadata = "06a27c8b90479a4bb8fe575f050f886e"
	vhdxSize     = "2442a52f1bcd7648b2115dbed83bf4b8"
)

// growVHDX makes the disk of a VHDX larger while its block table has room: the size is one item of the metadata.
func growVHDX(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	region, err := vhdxEntry(f, vhdxRegions, 16, vhdxMetadata)
	if err != nil {
		return err
	}
	metadata := int64(binary.LittleEndian.Uint64(region[16:]))
	item, err := vhdxEntry(f, metadata, 32, vhdxSize)
	if err != nil {
		return err
	}
	table, err := vhdxEntry(f, vhdxRegions, 16, vhdxBAT)
	if err != nil {
		return err
	}
	const leastBlock = 1 << 20
	if room := int64(binary.LittleEndian.Uint32(table[24:])) / 8; size/leastBlock+size>>30+2 > room {
		return fmt.Errorf("%w: %d entries", errNoRoom, room)
	}
	_, err = f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(size)), metadata+int64(binary.LittleEndian.Uint32(item[16:])))
	return errors.Join(err, f.Close())
}

// vhdxEntry finds an entry of 32 bytes by its GUID in a table whose header has some bytes.
func vhdxEntry(f io.ReaderAt, table, header int64, guid string) ([]byte, error) {
	e := make([]byte, 32)
	for at := table + header; at < table+64<<10; at += 32 {
		if _, err := f.ReadAt(e, at); err != nil {
			return nil, err
		}
		if hex.EncodeToString(e[:16]) == guid {
			return e, nil
		}
	}
	return nil, fmt.Errorf("no entry %s in the table at %d", guid, table)
}
