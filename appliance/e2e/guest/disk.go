package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
)

// Disk is a raw file served to qemu over the network block device protocol, with a volatile write cache: what was not
// flushed is in memory only, as in a drive. Cut is what a power cut does to it.
type Disk struct {
	file *os.File
	size int64
	ln   net.Listener
	done chan struct{} // closed when nobody is served any more

	mu struct {
		sync.Mutex // held over the file's I/O: requests are answered one by one
		cache      map[int64][]byte
		err        error // why it was not served to the end
	}
}

// sector is the unit of the cache: a write of an aligned 4 KiB is whole or absent after a cut.
const sector = 4096

// ServeDisk serves the file at a unix socket until Close; one client at a time.
func ServeDisk(path, socket string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if st.Size()%sector != 0 {
		return nil, errors.Join(fmt.Errorf("%s: %d bytes are not whole sectors of %d", path, st.Size(), sector), f.Close())
	}
	_ = os.Remove(socket)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d := &Disk{file: f, size: st.Size(), ln: ln, done: make(chan struct{})}
	d.mu.cache = map[int64][]byte{}
	go d.serve()
	return d, nil
}

func (d *Disk) serve() {
	defer close(d.done)
	for {
		conn, err := d.ln.Accept()
		if err != nil {
			return // closed
		}
		if err := d.client(conn); err != nil && !hungUp(err) {
			d.mu.Lock()
			d.mu.err = err
			d.mu.Unlock()
		}
		_ = conn.Close()
	}
}

// hungUp says whether an error is only that the client is no more, at whatever point: it may die with an answer unread.
func hungUp(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// Close writes what is cached, for a guest that was shut down, and ends the service. Its client must have ended.
func (d *Disk) Close() error {
	d.settle()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.mu.err, d.flushLocked(), d.file.Close())
}

// settle waits until what a dead client had sent is taken in.
func (d *Disk) settle() {
	_ = d.ln.Close() // closed already is as good
	<-d.done
}

// Cut takes the power away: of what was not flushed each sector is kept with the probability given, and the others are as
// they were. It returns how many were lost. Call it when qemu is dead.
func (d *Disk) Cut(rng *rand.Rand, keep float64) (lost int, err error) {
	d.settle()
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.size / sector { // in order, so that the seed decides
		if _, ok := d.mu.cache[n]; ok && rng.Float64() >= keep {
			delete(d.mu.cache, n)
			lost++
		}
	}
	return lost, d.flushLocked()
}

func (d *Disk) flushLocked() error {
	for n, p := range d.mu.cache {
		if _, err := d.file.WriteAt(p, n*sector); err != nil {
			return err
		}
		delete(d.mu.cache, n)
	}
	return nil
}

// readLocked reads through the cache.
func (d *Disk) readLocked(p []byte, off int64) error {
	if _, err := d.file.ReadAt(p, off); err != nil {
		return err
	}
	for n := off / sector; n*sector < off+int64(len(p)); n++ {
		if c, ok := d.mu.cache[n]; ok {
			overlay(p, off, c, n*sector)
		}
	}
	return nil
}

// overlay copies the part of src, which lies at srcOff, that dst at dstOff covers.
func overlay(dst []byte, dstOff int64, src []byte, srcOff int64) {
	from, to := max(dstOff, srcOff), min(dstOff+int64(len(dst)), srcOff+int64(len(src)))
	if from < to {
		copy(dst[from-dstOff:to-dstOff], src[from-srcOff:])
	}
}

// writeLocked writes into the cache.
func (d *Disk) writeLocked(p []byte, off int64) error {
	for n := off / sector; n*sector < off+int64(len(p)); n++ {
		c, ok := d.mu.cache[n]
		if !ok {
			c = make([]byte, sector)
			if _, err := d.file.ReadAt(c, n*sector); err != nil {
				return err
			}
			d.mu.cache[n] = c
		}
		overlay(c, n*sector, p, off)
	}
	return nil
}

// The parts of the protocol that qemu needs (doc/proto.md of the NBD project): fixed newstyle, one export, simple replies.
const (
	nbdMagic, nbdOption, nbdReply = 0x4e42444d41474943, 0x49484156454f5054, 0x3e889045565a9
	nbdRequest, nbdSimple         = 0x25609513, 0x67446698
	optExport, optAbort, optGo    = 1, 2, 7
	repAck, repInfo, repUnknown   = 1, 3, 1<<31 | 1
	cmdRead, cmdWrite, cmdClose   = 0, 1, 2
	cmdFlush                      = 3
	flags                         = 1<<0 | 1<<2 // has flags, knows flush; no FUA, so the kernel flushes instead
	nbdEIO                        = 5
)

func (d *Disk) client(c net.Conn) error {
	hello := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, nbdMagic), nbdOption)
	if _, err := c.Write(binary.BigEndian.AppendUint16(hello, 3)); err != nil { // fixed newstyle, no zeroes
		return err
	}
	var clientFlags [4]byte
	if _, err := io.ReadFull(c, clientFlags[:]); err != nil {
		return err
	}
	for {
		done, err := d.option(c)
		if err != nil {
			return err
		}
		if done {
			return d.transmit(c)
		}
	}
}

// option answers one option of the handshake; true when the transmission begins.
func (d *Disk) option(c net.Conn) (bool, error) {
	var head [16]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return false, err
	}
	option, n := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
		return false, err
	}
	export := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64(nil, uint64(d.size)), flags)
	switch option {
	case optExport:
		_, err := c.Write(export)
		return true, err
	case optGo:
		return true, errors.Join(reply(c, option, repInfo, append([]byte{0, 0}, export...)), reply(c, option, repAck, nil))
	case optAbort:
		return false, io.EOF
	default:
		return false, reply(c, option, repUnknown, nil)
	}
}

func reply(c net.Conn, option, kind uint32, data []byte) error {
	p := binary.BigEndian.AppendUint64(nil, nbdReply)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, kind)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	_, err := c.Write(append(p, data...))
	return err
}

// transmit answers requests until the client goes.
func (d *Disk) transmit(c net.Conn) error {
	var head [28]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		if magic := binary.BigEndian.Uint32(head[:]); magic != nbdRequest {
			return fmt.Errorf("request with magic %#x", magic)
		}
		command, off, n := binary.BigEndian.Uint16(head[6:]), int64(binary.BigEndian.Uint64(head[16:])), binary.BigEndian.Uint32(head[24:])
		if command == cmdClose {
			return io.EOF
		}
		data, err := d.command(c, command, off, n)
		answer := binary.BigEndian.AppendUint32(nil, nbdSimple)
		if err != nil {
			answer, data = binary.BigEndian.AppendUint32(answer, nbdEIO), nil
		} else {
			answer = binary.BigEndian.AppendUint32(answer, 0)
		}
		answer = append(append(answer, head[8:16]...), data...)
		if _, err := c.Write(answer); err != nil {
			return err
		}
	}
}

func (d *Disk) command(c net.Conn, command uint16, off int64, n uint32) ([]byte, error) {
	p := make([]byte, n)
	if command == cmdWrite {
		if _, err := io.ReadFull(c, p); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch command {
	case cmdRead:
		return p, d.readLocked(p, off)
	case cmdWrite:
		return nil, d.writeLocked(p, off)
	case cmdFlush:
		return nil, d.flushLocked()
	default:
		return nil, fmt.Errorf("command %d", command)
	}
}
