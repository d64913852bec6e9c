package rig

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

// Target is where an appliance replicates to: Azurite behind a proxy, or a directory.
type Target struct {
	URL   string
	Key   string
	Azure *azurite.Server // nil for a directory
	Proxy *Proxy
}

// Container is the container of a test's target.
const Container = "replicas"

// AzureTarget starts Azurite with its data in dir, or in memory if that is "", and a proxy before it.
func AzureTarget(ctx context.Context, dir string) (*Target, error) {
	server, err := azurite.Start(ctx, azurite.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	t := &Target{Azure: server, Key: server.Key()}
	if err := t.stand(); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	return t, nil
}

// stand puts the proxy before the server.
func (t *Target) stand() error {
	u, err := url.Parse(t.Azure.Endpoint())
	if err != nil {
		return err
	}
	if t.Proxy, err = NewProxy(u.Host); err != nil {
		return err
	}
	u.Host = t.Proxy.Addr()
	t.URL = fmt.Sprintf("%s/%s", u, Container)
	return nil
}

// DirTarget is a directory, which need not exist.
func DirTarget(dir string) (*Target, error) {
	abs, err := filepath.Abs(dir)
	return &Target{URL: "dir://" + abs}, err
}

// Close ends server and proxy.
func (t *Target) Close() error {
	if t.Azure == nil {
		return nil
	}
	return errors.Join(t.Proxy.Close(), t.Azure.Close())
}
