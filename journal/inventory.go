package journal

import (
	"fmt"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// StoredVM is what a store knows of a VM.
type StoredVM struct {
	Name, ID string
	Disks    map[string]string // names by id
	Reserved uint64            // no epoch above it was ever given out
}

// Inventory lists the VMs of a store that no journal has open, by name. It changes nothing. Errors: ErrFormat, for a record
// that does not parse.
func Inventory(store kv.Store) ([]StoredVM, error) {
	var all []StoredVM
	err := store.Scan([]byte(preVM), func(k, v []byte) error {
		var r vmRecord
		if err := decodeJSON(string(k), v, &r); err != nil {
			return err
		}
		all = append(all, StoredVM{Name: string(k[len(preVM):]), ID: r.ID, Disks: map[string]string{}})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range all {
		if err := all[i].load(store); err != nil {
			return nil, fmt.Errorf("vm %s: %w", all[i].Name, err)
		}
	}
	return all, nil
}

func (s *StoredVM) load(store kv.Store) error {
	var e epochRecord
	if _, err := getJSON(store, preEpoch+s.ID, &e); err != nil {
		return err
	}
	s.Reserved = e.Reserved
	return store.Scan([]byte(preDisk+s.ID+"/"), func(k, v []byte) error {
		var r diskRecord
		if err := decodeJSON(string(k), v, &r); err != nil {
			return err
		}
		_, id, _ := splitDiskKey(string(k))
		s.Disks[id] = r.Name
		return nil
	})
}

// Stored reads the documents of a store that no journal has open.
type Stored struct{ Store kv.Store }

// Load is Journal.Load.
func (s Stored) Load(key string, v any) (bool, error) { return getJSON(s.Store, preDoc+key, v) }
