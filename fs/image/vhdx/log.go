package vhdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Of a log entry.
const (
	logHeaderSize  = 64
	descriptorSize = 32
	firstSector    = (page - logHeaderSize) / descriptorSize // descriptors in the first sector of an entry

	offLogEntryLength = 8
	offLogTail        = 12
	offLogSequence    = 16
	offLogDescriptors = 24
	offLogEntryGUID   = 32
	offLogFlushed     = 48
	offLogLast        = 56

	leadingBytes  = 8 // of a page that the descriptor holds, because the data sector has its header there
	trailingBytes = 4

	// crcBudget is how often the log may be read to find its entries: enough for any that a writer left behind.
	crcBudget = 64
)

// view is the file as it is after the log was replayed. size is what it has then.
type view struct {
	r        io.ReaderAt
	fileSize int64
	size     int64
	pages    map[extent.FileBlock][]byte
	zero     extent.Set[extent.FileBlock]
}

// ReadAt reads the file with the log's content over it; what a replay would append reads as zeros.
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if len(v.pages) == 0 && v.zero.Empty() && off+int64(len(p)) <= v.fileSize {
		return v.r.ReadAt(p, off)
	}
	n := 0
	for n < len(p) && off < v.size {
		in := off % page
		part := p[n:min(len(p), n+int(min(page-in, v.size-off)))]
		if err := v.readPage(part, off, in); err != nil {
			return n, err
		}
		n += len(part)
		off += int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (v *view) readPage(p []byte, off, in int64) error {
	block := extent.FileBlock(off / page)
	if b, ok := v.pages[block]; ok {
		copy(p, b[in:])
		return nil
	}
	if v.zero.Contains(extent.Range[extent.FileBlock]{Start: block, End: block + 1}) {
		clear(p)
		return nil
	}
	have := min(max(v.fileSize-off, 0), int64(len(p)))
	clear(p[have:])
	if n, err := v.r.ReadAt(p[:have], off); int64(n) < have {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// replayed are the blocks whose content is the log's.
func (v *view) replayed() extent.Set[extent.FileBlock] {
	s := v.zero.Clone()
	for b := range v.pages {
		s.Add(extent.Range[extent.FileBlock]{Start: b, End: b + 1})
	}
	return s
}

// logEntry is a checked entry: whole sectors, in order.
type logEntry struct {
	at       int64 // in the log
	b        []byte
	sequence uint64
	tail     int64
}

// ring is the log as bytes, which go on at the start when they reach the end.
type ring struct {
	b      []byte
	guid   guid
	budget int64 // bytes that may still be summed
}

var errBudget = errors.New("too much of the log looks like entries")

// entry returns the valid entry at an offset; none is not an error.
func (r *ring) entry(at int64) (logEntry, bool, error) {
	le := binary.LittleEndian
	head := r.b[at:min(at+page, int64(len(r.b)))]
	length := int64(le.Uint32(head[offLogEntryLength:]))
	e := logEntry{at: at, sequence: le.Uint64(head[offLogSequence:]), tail: int64(le.Uint32(head[offLogTail:]))}
	switch {
	case !bytes.HasPrefix(head, []byte("loge")), !bytes.Equal(head[offLogEntryGUID:offLogEntryGUID+16], r.guid[:]),
		length == 0, length%page != 0, length > int64(len(r.b)), e.tail%page != 0, e.tail >= int64(len(r.b)), e.sequence == 0:
		return logEntry{}, false, nil
	}
	if r.budget -= length; r.budget < 0 {
		return logEntry{}, false, errBudget
	}
	e.b = r.b[at:min(at+length, int64(len(r.b)))]
	if rest := length - int64(len(e.b)); rest > 0 {
		e.b = append(bytes.Clone(e.b), r.b[:rest]...)
	}
	return e, le.Uint32(e.b[4:]) == checksum(e.b), nil
}

// sequence returns the run of entries from an offset on whose numbers follow each other, and the offset behind it.
func (r *ring) sequence(at int64) (run []logEntry, end int64, err error) {
	for used := int64(0); used < int64(len(r.b)); {
		e, ok, err := r.entry((at + used) % int64(len(r.b)))
		if err != nil {
			return nil, 0, err
		}
		used += int64(len(e.b))
		if !ok || used > int64(len(r.b)) || len(run) > 0 && e.sequence != run[len(run)-1].sequence+1 {
			break
		}
		run = append(run, e)
		end = at + used
	}
	return run, end, nil
}

// active finds the entries to replay: of all runs that hold the tail their newest entry names, the newest, from there on.
func (r *ring) active() ([]logEntry, error) {
	var best []logEntry
	for at := int64(0); at < int64(len(r.b)); {
		run, end, err := r.sequence(at)
		if err != nil {
			return nil, err
		}
		if len(run) == 0 {
			at += page
			continue
		}
		at = end
		head := run[len(run)-1]
		for i, e := range run {
			if e.at == head.tail && (len(best) == 0 || head.sequence > best[len(best)-1].sequence) {
				best = run[i:]
				break
			}
		}
	}
	return best, nil
}

// replay reads the log that a header names into the view. It returns how many entries there were.
func (v *view) replay(h header) (int, error) {
	if h.logVersion != logVersion {
		return 0, fail("log version", h.at+offLogVersion, fmt.Sprint(h.logVersion), fmt.Sprint(logVersion), image.ErrVersion)
	}
	if n := int64(h.log.End - h.log.Start); n == 0 {
		return 0, fail("log length", h.log.Start, "0", "a log, since the header names one", image.ErrInvalid)
	}
	if n := int64(h.log.End - h.log.Start); n > maxLog {
		return 0, fail("log length", h.at+offLogLength, fmt.Sprint(n), fmt.Sprintf("at most %d", maxLog), image.ErrFeature)
	}
	b, err := image.ReadField(v.r, v.fileSize, "log", h.log.Start, int64(h.log.End-h.log.Start))
	if err != nil {
		return 0, err
	}
	r := &ring{b: b, guid: h.logGUID, budget: crcBudget * int64(len(b))}
	entries, err := r.active()
	if err != nil {
		return 0, fail("log", h.log.Start, "unreadable", "entries one behind the other", errors.Join(image.ErrInvalid, err))
	}
	for _, e := range entries {
		if err := v.apply(e, h.log.Start+image.FileOffset(e.at)); err != nil {
			return 0, err
		}
	}
	return len(entries), nil
}

// apply replays one entry, which lies at off of the file.
func (v *view) apply(e logEntry, off image.FileOffset) error {
	le := binary.LittleEndian
	count := int64(le.Uint32(e.b[offLogDescriptors:]))
	sectors := 1 + (max(count-firstSector, 0)+page/descriptorSize-1)/(page/descriptorSize)
	if sectors*page > int64(len(e.b)) {
		return fail("log entry descriptors", off+offLogDescriptors, fmt.Sprint(count), fmt.Sprintf("what fits into %d bytes", len(e.b)), image.ErrInvalid)
	}
	flushed, last := le.Uint64(e.b[offLogFlushed:]), le.Uint64(e.b[offLogLast:])
	if flushed > uint64(v.fileSize) {
		return fail("log entry flushed file offset", off+offLogFlushed, fmt.Sprint(flushed), fmt.Sprintf("at most the %d bytes of the file", v.fileSize), image.ErrTruncated)
	}
	if last > 1<<62 {
		return fail("log entry last file offset", off+offLogLast, fmt.Sprint(last), "the end of a file", image.ErrInvalid)
	}
	v.size = max(v.size, int64(last))
	data := e.b[sectors*page:]
	for i := range count {
		at := logHeaderSize + i*descriptorSize
		rest, err := v.descriptor(e, e.b[at:at+descriptorSize], data, off+image.FileOffset(at))
		if err != nil {
			return err
		}
		data = rest
	}
	return nil
}

// descriptor replays one descriptor and returns the data sectors that are left.
func (v *view) descriptor(e logEntry, d, data []byte, off image.FileOffset) ([]byte, error) {
	le := binary.LittleEndian
	at := le.Uint64(d[16:])
	if le.Uint64(d[24:]) != e.sequence {
		return nil, fail("log descriptor sequence number", off+24, fmt.Sprint(le.Uint64(d[24:])), fmt.Sprint(e.sequence), image.ErrInvalid)
	}
	if at%page != 0 || at > 1<<62 {
		return nil, fail("log descriptor file offset", off+16, fmt.Sprint(at), "a multiple of 4096", image.ErrInvalid)
	}
	block := extent.FileBlock(at / page)
	switch string(d[:4]) {
	case "zero":
		n := le.Uint64(d[8:])
		if n%page != 0 || n > 1<<62 {
			return nil, fail("log descriptor zero length", off+8, fmt.Sprint(n), "a multiple of 4096", image.ErrInvalid)
		}
		v.zeroRange(extent.Range[extent.FileBlock]{Start: block, End: block + extent.FileBlock(n/page)})
		return data, nil
	case "desc":
		if len(data) < page {
			return nil, fail("log descriptor", off, "more data than the entry holds", "a data sector for each", image.ErrInvalid)
		}
		s := data[:page]
		if !bytes.HasPrefix(s, []byte("data")) || le.Uint32(s[4:]) != uint32(e.sequence>>32) || le.Uint32(s[page-4:]) != uint32(e.sequence) {
			return nil, fail("log data sector", off, "not this entry's", fmt.Sprintf("sequence number %d", e.sequence), image.ErrInvalid)
		}
		p := make([]byte, page)
		copy(p, d[8:8+leadingBytes])
		copy(p[leadingBytes:], s[leadingBytes:page-trailingBytes])
		copy(p[page-trailingBytes:], d[4:4+trailingBytes])
		v.pages[block] = p
		v.zero.Remove(extent.Range[extent.FileBlock]{Start: block, End: block + 1})
		return data[page:], nil
	}
	return nil, fail("log descriptor signature", off, fmt.Sprintf("%q", d[:4]), `"desc" or "zero"`, image.ErrMagic)
}

func (v *view) zeroRange(r extent.Range[extent.FileBlock]) {
	for b := range v.pages {
		if r.Contains(b) {
			delete(v.pages, b)
		}
	}
	v.zero.Add(r)
}
