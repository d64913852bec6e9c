package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Check verifies every invariant of a store's content that can be seen without
// the images: the version, that every record parses, that activity, change
// sets, flags and suspicion belong to a known disk, disks and epoch numbers to
// a known VM. It changes nothing and may run on a store that no journal has
// open. The first violation is returned, as ErrFormat or ErrNewer.
func Check(store kv.Store) error {
	c := checker{vms: make(map[string]bool), disks: make(map[string]bool)}
	if raw, err := store.Get([]byte(keyVersion)); err != nil {
		return fmt.Errorf("read journal version: %w", err)
	} else if err := checkVersion(raw); err != nil {
		return err
	}
	if err := store.Scan([]byte(preVM), c.vm); err != nil {
		return err
	}
	if err := store.Scan([]byte(preDisk), c.disk); err != nil {
		return err
	}
	return store.Scan(nil, c.record)
}

type checker struct{ vms, disks map[string]bool } // by id

func (c *checker) vm(k, v []byte) error {
	var r vmRecord
	if err := decodeJSON(string(k), v, &r); err != nil {
		return err
	}
	if c.vms[r.ID] || r.ID == "" {
		return fmt.Errorf("%w: two VMs have id %q", ErrFormat, r.ID)
	}
	c.vms[r.ID] = true
	return nil
}

func (c *checker) disk(k, v []byte) error {
	var r diskRecord
	if err := decodeJSON(string(k), v, &r); err != nil {
		return err
	}
	vm, disk, ok := splitDiskKey(string(k))
	if !ok || !c.vms[vm] || c.disks[disk] {
		return fmt.Errorf("%w: %s: no such VM, or a second disk of that id", ErrFormat, k)
	}
	c.disks[disk] = true
	return nil
}

// record checks one record of any kind, the VMs and disks being known.
func (c *checker) record(k, v []byte) error {
	key := string(k)
	prefix := key[:strings.IndexByte(key, '/')+1]
	switch prefix {
	case preVM, preDisk, preDoc:
		return nil
	case "meta/":
		return checkMeta(key, v)
	case preEpoch:
		var r epochRecord
		return c.owned(c.vms, key, prefix, decodeJSON(key, v, &r))
	case preClean:
		var r Facts
		return c.owned(c.disks, key, prefix, decodeJSON(key, v, &r))
	case preSuspect:
		return c.owned(c.disks, key, prefix, checkSuspect(key, v))
	case preActive, preSet:
		disk, n, err := splitNumbered(k, prefix)
		if err == nil && prefix == preSet {
			err = decodePage(new(blockMap), n, v)
		}
		return c.owned(c.disks, prefix+disk, prefix, err)
	}
	return fmt.Errorf("%w: unknown key %q", ErrFormat, key)
}

func (c *checker) owned(owners map[string]bool, key, prefix string, err error) error {
	if err == nil && !owners[strings.TrimPrefix(key, prefix)] {
		return fmt.Errorf("%w: %s belongs to nothing known", ErrFormat, key)
	}
	return err
}

func checkMeta(key string, v []byte) error {
	switch key {
	case keyVersion:
		return checkVersion(v)
	case keySession:
		var r sessionRecord
		return decodeJSON(key, v, &r)
	case keyClean:
		var r cleanRecord
		return decodeJSON(key, v, &r)
	}
	return fmt.Errorf("%w: unknown key %q", ErrFormat, key)
}

func checkSuspect(key string, v []byte) error {
	var r suspectRecord
	if err := decodeJSON(key, v, &r); err != nil {
		return err
	}
	at := region(0)
	for _, s := range r.Ranges {
		if s[0] < at || s[1] <= s[0] {
			return fmt.Errorf("%w: %s: ranges out of order", ErrFormat, key)
		}
		at = s[1]
	}
	return nil
}

// Dumped is one line of a dump: a record as it is stored, or regions of the activity
// log and blocks of a change set as the numbers from From to To, half-open.
type Dumped struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value,omitempty"` // a string where the record is no JSON
	From  *int64          `json:"from,omitempty"`
	To    *int64          `json:"to,omitempty"`
}

// Dump writes the store's content as text, one record a line, the activity log
// as ranges of regions. It changes nothing.
func Dump(store kv.Store, w io.Writer) error {
	return dump(store, &dumper{
		record: func(key string, value []byte) error { _, err := fmt.Fprintf(w, "%s %s\n", key, value); return err },
		numbered: func(key string, from, to int64) error {
			_, err := fmt.Fprintf(w, "%s [%d,%d)\n", key, from, to)
			return err
		},
	})
}

// DumpJSON is Dump for scripts: an array of Dumped.
func DumpJSON(store kv.Store, w io.Writer) error {
	before := "[\n"
	write := func(d Dumped) error {
		line, err := json.Marshal(d)
		if err == nil {
			_, err = fmt.Fprintf(w, "%s%s", before, line)
		}
		before = ",\n"
		return err
	}
	err := dump(store, &dumper{
		record: func(key string, value []byte) (err error) {
			if !json.Valid(value) {
				value, err = json.Marshal(string(value))
			}
			return errors.Join(err, write(Dumped{Key: key, Value: value}))
		},
		numbered: func(key string, from, to int64) error { return write(Dumped{Key: key, From: &from, To: &to}) },
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, strings.TrimPrefix(before, ",")+"]\n")
	return err
}

func dump(store kv.Store, d *dumper) error {
	err := store.Scan(nil, func(k, v []byte) error {
		for _, prefix := range []string{preActive, preSet} {
			if strings.HasPrefix(string(k), prefix) {
				disk, n, err := splitNumbered(k, prefix)
				if err != nil {
					return err
				}
				return d.number(prefix+disk, n)
			}
		}
		if err := d.flush(); err != nil {
			return err
		}
		return d.record(string(k), v)
	})
	if err != nil {
		return err
	}
	return d.flush()
}

// dumper joins neighbouring numbers of one key.
type dumper struct {
	record     func(key string, value []byte) error
	numbered   func(key string, from, to int64) error
	key        string
	first, end int64
}

func (d *dumper) number(key string, n int64) error {
	if key == d.key && n == d.end {
		d.end++
		return nil
	}
	err := d.flush()
	d.key, d.first, d.end = key, n, n+1
	return err
}

func (d *dumper) flush() error {
	if d.key == "" {
		return nil
	}
	err := d.numbered(d.key, d.first, d.end)
	d.key = ""
	return err
}

// Check is Check of the store, and of what memory and store must agree on while
// the journal works: every active region has its record.
func (j *Journal) Check() error {
	if err := Check(j.store); err != nil {
		return err
	}
	j.commit.Lock()
	defer j.commit.Unlock()
	if j.Failing() != nil {
		return nil
	}
	for _, d := range j.disks() {
		if err := d.checkLocked(); err != nil {
			return fmt.Errorf("disk %s: %w", d.Name(), err)
		}
	}
	return nil
}

// checkLocked compares d with the store. The caller holds the commit lock.
func (d *Disk) checkLocked() error {
	stored, err := d.storedActive()
	if err != nil {
		return err
	}
	recorded := make(map[region]bool, len(stored))
	for _, r := range stored {
		recorded[r] = true
	}
	active := d.regions.list()
	for _, r := range active {
		if d.regions.state(r) == wordActive && !recorded[r] {
			return fmt.Errorf("%w: region %d is active and has no record", ErrFormat, r)
		}
	}
	if n := int(d.regions.active.Load()); n != len(active) {
		return fmt.Errorf("%w: %d regions counted, %d active", ErrFormat, n, len(active))
	}
	return nil
}

// Dump is Dump of the store.
func (j *Journal) Dump(w io.Writer) error { return Dump(j.store, w) }

// DumpJSON is DumpJSON of the store.
func (j *Journal) DumpJSON(w io.Writer) error { return DumpJSON(j.store, w) }
