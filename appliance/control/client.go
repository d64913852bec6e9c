package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// Client talks to the appliance behind a socket. Its methods return *Error for everything that the appliance refused, and
// for a socket on which nobody answers (CodeUnreachable).
type Client struct {
	path string
	http *http.Client
}

// Client offers what Backend does, from the other side.
var _ Backend = (*Client)(nil)

// NewClient returns a client of the socket at path. It connects with each call.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status is Backend's.
func (c *Client) Status(ctx context.Context, vm string) (s Status, err error) {
	err = c.get(ctx, pathStatus, url.Values{"vm": {vm}}, &s)
	return s, err
}

// Points is Backend's.
func (c *Client) Points(ctx context.Context, vm string) (p Points, err error) {
	err = c.get(ctx, pathPoints, url.Values{"vm": {vm}}, &p)
	return p, err
}

// Sync is Backend's. progress may be nil.
func (c *Client) Sync(ctx context.Context, vm string, wait bool, progress func(Progress)) (res SyncResult, err error) {
	err = c.stream(ctx, pathSync, request{VM: vm, Wait: wait}, sinks{progress: progress}, &res)
	return res, err
}

// Resync is Backend's. progress may be nil.
func (c *Client) Resync(ctx context.Context, vm, disk string, o ResyncOptions, progress func(Progress)) (res Resync, err error) {
	err = c.stream(ctx, pathResync, request{VM: vm, Disk: disk, Options: o}, sinks{progress: progress}, &res)
	return res, err
}

// Pause is Backend's.
func (c *Client) Pause(ctx context.Context, vm string) (Moved, error) {
	return c.move(ctx, pathPause, request{VM: vm})
}

// Resume is Backend's.
func (c *Client) Resume(ctx context.Context, vm string) (Moved, error) {
	return c.move(ctx, pathResume, request{VM: vm})
}

// Protect is Backend's.
func (c *Client) Protect(ctx context.Context, vm string) (Moved, error) {
	return c.move(ctx, pathProtect, request{VM: vm})
}

// Unprotect is Backend's.
func (c *Client) Unprotect(ctx context.Context, vm string, o UnprotectOptions) (Moved, error) {
	return c.move(ctx, pathUnprotect, request{VM: vm, Unprotect: o})
}

func (c *Client) move(ctx context.Context, path string, q request) (m Moved, err error) {
	err = c.stream(ctx, path, q, sinks{}, &m)
	return m, err
}

// Unmount is Backend's.
func (c *Client) Unmount(ctx context.Context, store string, force bool) (u Unmounted, err error) {
	err = c.stream(ctx, pathUnmount, request{Store: store, Force: force}, sinks{}, &u)
	return u, err
}

// Adopt is Backend's. progress may be nil.
func (c *Client) Adopt(ctx context.Context, vm string, progress func(Progress)) (res Resync, err error) {
	err = c.stream(ctx, pathAdopt, request{VM: vm}, sinks{progress: progress}, &res)
	return res, err
}

// JournalCheck is Backend's.
func (c *Client) JournalCheck(ctx context.Context) error {
	return c.stream(ctx, pathJournalCheck, request{}, sinks{}, &struct{}{})
}

// JournalDump is Backend's.
func (c *Client) JournalDump(ctx context.Context, w io.Writer, o DumpOptions) error {
	return c.stream(ctx, pathJournalDump, request{Dump: o}, sinks{data: w}, &struct{}{})
}

func (c *Client) get(ctx context.Context, path string, q url.Values, doc any) error {
	resp, err := c.do(ctx, http.MethodGet, path+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(doc); err != nil {
		return c.cut(err)
	}
	return nil
}

// do sends a request and turns an answer that is no success into its *Error.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://vhdrelay"+path, body)
	if err != nil {
		return nil, fmt.Errorf("asking the appliance: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var m message
	if json.NewDecoder(resp.Body).Decode(&m) != nil || m.Error == nil {
		return nil, &Error{Code: CodeInternal, Exit: ExitFailed, Message: "the appliance answered " + resp.Status,
			Action: "check that the command and the appliance are of the same version"}
	}
	return nil, m.Error
}

func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return c.cut(err)
	}
	e := &Error{Code: CodeUnreachable, Exit: ExitUnreachable, Err: err,
		Message: fmt.Sprintf("no appliance answers on %s", c.path),
		Action:  "start it: systemctl start vhdrelay; if it runs, check that control_socket is the same in its config"}
	if errors.Is(err, syscall.EACCES) {
		e.Message = fmt.Sprintf("%s may not be opened by this user", c.path)
		e.Action = "run the command as the user that runs the appliance, which is root unless the unit was changed"
	}
	return e
}

// cut is an answer that ends too early: the appliance stopped or died meanwhile.
func (c *Client) cut(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &Error{Code: CodeInterrupted, Exit: ExitUnreachable, Err: err,
		Message: "the appliance went away before it had answered",
		Action:  "journalctl -u vhdrelay says why; what was under way goes on after its restart"}
}

// sinks take what comes before the result. Each may be nil.
type sinks struct {
	progress func(Progress)
	data     io.Writer
}

func (s sinks) take(m message) error {
	if m.Progress != nil && s.progress != nil {
		s.progress(*m.Progress)
	}
	if len(m.Data) > 0 && s.data != nil {
		if _, err := s.data.Write(m.Data); err != nil {
			return fmt.Errorf("writing the appliance's answer: %w", err)
		}
	}
	return nil
}

// stream sends q and reads lines up to the result, which it stores in res.
func (c *Client) stream(ctx context.Context, path string, q request, out sinks, res any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("asking the appliance: %w", err)
	}
	resp, err := c.do(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	for {
		var m message
		if err := lines.Decode(&m); err != nil {
			return c.cut(err)
		}
		switch {
		case m.Error != nil:
			return m.Error
		case m.Result != nil:
			return json.Unmarshal(m.Result, res)
		}
		if err := out.take(m); err != nil {
			return err
		}
	}
}
