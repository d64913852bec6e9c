package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

// test is one run: a guest, a target, and what was found.
type test struct {
	*guest.Machine
	dir     string
	azure   *azurite.Server
	results map[string]error
}

const (
	storeSize = 1 << 30
	diskSize  = 32 << 20
	container = "replicas"
)

// setup makes everything and boots.
func setup(ctx context.Context, cache, dir string) (t *test, err error) {
	t = &test{dir: dir, results: map[string]error{}}
	image, err := guest.Cached(ctx, cache, os.Stdout)
	if err != nil {
		return nil, err
	}
	module, err := guest.Module()
	if err != nil {
		return nil, err
	}
	payload, store := filepath.Join(dir, "payload.img"), filepath.Join(dir, "store.img")
	if err := errors.Join(guest.Payload(ctx, module, dir, payload), t.makeStore(ctx, store)); err != nil {
		return nil, err
	}
	if t.azure, err = azurite.Start(ctx, azurite.Options{}); err != nil {
		return nil, err
	}
	if t.Machine, err = guest.New(ctx, guest.Options{Dir: filepath.Join(dir, "machine"), Image: image, Payload: payload, Store: store}); err != nil {
		return nil, errors.Join(err, t.azure.Close())
	}
	began := time.Now()
	if err := t.Boot(ctx); err != nil {
		return nil, errors.Join(err, t.azure.Close())
	}
	fmt.Printf("booted in %v\n", time.Since(began).Round(time.Second))
	return t, nil
}

// makeStore makes a file system with a VM of one disk.
func (t *test) makeStore(ctx context.Context, path string) error {
	tree := filepath.Join(t.dir, "store")
	disk := filepath.Join(tree, "vhd", "web01", "os.raw")
	if err := os.MkdirAll(filepath.Dir(disk), 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(disk, nil, 0o644), os.Truncate(disk, diskSize)); err != nil {
		return err
	}
	return guest.Ext4(ctx, path, "store", tree, storeSize)
}

func (t *test) close() error { return errors.Join(t.Close(), t.azure.Close()) }

// port is the one that Azurite has here and the guest's loopback has too.
func (t *test) port() int {
	u, err := url.Parse(t.azure.Endpoint())
	if err != nil {
		return 0
	}
	port, _ := strconv.Atoi(u.Port()) // an endpoint of our own making has one
	return port
}

func (t *test) url() string { return t.azure.Endpoint() + "/" + container }

// config is the guest's configuration: the installed one, with what an administrator changes.
func (t *test) config(interval string) string {
	return fmt.Sprintf(`stores:
  - {name: main, source: /srv/vhd, mount: /vhd}
target:
  url: %s
  credentials: {type: shared_key, file: /run/credentials/vhdrelay.service/target}
replication: {interval: %s, apply_interval: 20s}
`, t.url(), interval)
}

// check notes what a step found.
func (t *test) check(name string, err error) bool {
	t.results[name] = err
	verdict := "ok  "
	if err != nil {
		verdict = "FAIL"
	}
	fmt.Printf("%s %s %s\n", time.Now().UTC().Format(time.TimeOnly), verdict, name)
	if err != nil {
		fmt.Println("     " + strings.ReplaceAll(err.Error(), "\n", "\n     "))
	}
	return err == nil
}

// play runs the steps and counts the failures. Later steps are tried after a failure: they say more.
func (t *test) play(ctx context.Context) (failed int) {
	for _, s := range steps {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		err := s.run(t, ctx)
		cancel()
		if !t.check(s.name, err) {
			failed++
			t.evidence(s.name)
		}
	}
	return failed
}

// stepTimeout is for one step, of an emulated machine.
const stepTimeout = 10 * time.Minute

// evidence keeps the guest's journal as it is after a failure.
func (t *test) evidence(step string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text, err := t.Run(ctx, "journalctl", "-b", "--no-pager", "-o", "short-monotonic")
	if err != nil {
		text += err.Error()
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, step)
	if err := os.WriteFile(filepath.Join(t.dir, "journal-"+name+".log"), []byte(text), 0o600); err != nil {
		fmt.Println("     no evidence kept:", err)
	}
}
