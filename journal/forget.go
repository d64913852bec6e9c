package journal

import (
	"fmt"
	"strings"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// ForgetVM removes everything about a VM from the store, so that its name may begin
// anew with another id: disks that are known and not attached, epoch numbers, the VM
// itself last. No disk may be attached (ErrBusy) and no epoch outstanding
// (ErrSealed). A VM that is not there is a success, so it may be repeated. The VM's
// methods are not to be called any more.
func (j *Journal) ForgetVM(name string) error {
	var rec vmRecord
	found, err := getJSON(j.store, preVM+name, &rec)
	if err != nil {
		return fmt.Errorf("forget vm %s: %w", name, err)
	}
	if err := j.unload(name); err != nil || !found {
		return err
	}
	disks, err := j.keys(preDisk + rec.ID + "/")
	if err != nil {
		return fmt.Errorf("forget vm %s: %w", name, err)
	}
	for _, key := range disks {
		_, id, _ := splitDiskKey(key)
		for _, prefix := range []string{preActive, preSet} {
			if err := deletePrefix(j.store, prefix+id+"/"); err != nil {
				return fmt.Errorf("forget vm %s: %w", name, err)
			}
		}
		var b kv.Batch
		for _, k := range []string{preClean + id, preSuspect + id, key} {
			b.Delete([]byte(k))
		}
		if err := j.store.Apply(&b); err != nil {
			return fmt.Errorf("forget vm %s: %w", name, err)
		}
	}
	var b kv.Batch
	b.Delete([]byte(preEpoch + rec.ID))
	b.Delete([]byte(preVM + name))
	if err := j.store.Apply(&b); err != nil {
		return fmt.Errorf("forget vm %s: %w", name, err)
	}
	return nil
}

// unload takes a VM out of memory.
func (j *Journal) unload(name string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	vm := j.mu.vms[name]
	if vm == nil {
		return nil
	}
	if vm.Sealed() != nil {
		return fmt.Errorf("forget vm %s: %w", name, ErrSealed)
	}
	if len(vm.Disks()) > 0 {
		return fmt.Errorf("forget vm %s: %w", name, ErrBusy)
	}
	delete(j.mu.vms, name)
	return nil
}

// Documents lists the keys of the documents that begin with prefix, in order.
func (j *Journal) Documents(prefix string) ([]string, error) {
	keys, err := j.keys(preDoc + prefix)
	for i := range keys {
		keys[i] = strings.TrimPrefix(keys[i], preDoc)
	}
	return keys, err
}

// RemoveDocuments removes every document whose key begins with prefix, in batches:
// after an error some are left.
func (j *Journal) RemoveDocuments(prefix string) error { return deletePrefix(j.store, preDoc+prefix) }

func (j *Journal) keys(prefix string) ([]string, error) {
	var keys []string
	err := j.store.Scan([]byte(prefix), func(k, _ []byte) error {
		keys = append(keys, string(k))
		return nil
	})
	return keys, err
}
