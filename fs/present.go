package fs

import (
	"errors"
	"os"
	"reflect"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// errNoReadPool: this release of go-fuse keeps its buffers elsewhere.
var errNoReadPool = errors.New("go-fuse has no pool of read buffers where it was")

// keepPresent makes every buffer that the server reads requests into present in memory before its first use.
//
// The kernel copies a request into pages that it looks up one by one. A page that is not there yet it has to make, and for
// a process that is being killed it does not: the copy fails, and the request is answered with EIO instead of waiting for
// the next process (fuse_dev_do_read, get_user_pages). go-fuse's buffers come fresh from the kernel after many a garbage
// collection, and it has no option for them.
func keepPresent(srv *fuse.Server) error {
	pool, err := readPool(srv)
	if err != nil {
		return err
	}
	fresh := pool.New
	pool.New = nil // an empty pool says so
	// INIT was read into one already: whatever is in the pool is made present as well.
	var taken []any
	for b := pool.Get(); b != nil; b = pool.Get() {
		touch(b)
		taken = append(taken, b)
	}
	for _, b := range taken {
		pool.Put(b)
	}
	pool.New = func() any {
		b := fresh()
		touch(b)
		return b
	}
	return nil
}

func readPool(srv *fuse.Server) (*sync.Pool, error) {
	field := reflect.ValueOf(srv).Elem().FieldByName("readPool")
	if !field.IsValid() || field.Type() != reflect.TypeFor[sync.Pool]() {
		return nil, errNoReadPool
	}
	return (*sync.Pool)(unsafe.Pointer(field.UnsafeAddr())), nil
}

func touch(buffer any) {
	b, ok := buffer.([]byte)
	if !ok || len(b) == 0 {
		return
	}
	for at := 0; at < len(b); at += os.Getpagesize() {
		b[at] = 0
	}
	b[len(b)-1] = 0
}
