package pageblob

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// overPipe opens a target of which each connection is a pipe that answer serves: there time is the bubble's.
func overPipe(t *testing.T, answer func(net.Conn)) *Target {
	return open(t, Options{
		URL: "http://127.0.0.1/acct/box",
		Env: func(name string) string { return map[string]string{"AZURE_STORAGE_KEY": keyA}[name] },
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				answer(theirs)
			}()
			return ours, nil
		},
	})
}

func isStall(t *testing.T, err error, want target.Outcome) {
	t.Helper()
	var e *target.Error
	if !errors.As(err, &e) || !errors.Is(err, errStalled) || e.Class != retry.Recoverable || e.Code != "timeout" || e.Outcome != want {
		t.Fatalf("%v", err)
	}
}

// TestStall: a request of which nothing moves ends after DefaultStall, whether it is not taken or not answered.
func TestStall(t *testing.T) {
	page := make([]byte, 4<<20)
	for name, answer := range map[string]func(net.Conn, <-chan struct{}){
		"not taken": func(c net.Conn, end <-chan struct{}) {
			_, _ = io.ReadFull(c, make([]byte, 100))
			<-end // neither reads nor closes
		},
		"not answered": func(c net.Conn, _ <-chan struct{}) { _, _ = io.Copy(io.Discard, c) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				end := make(chan struct{})
				defer close(end)
				tgt := overPipe(t, func(c net.Conn) { answer(c, end) })
				began := time.Now()
				err := tgt.PutPages(t.Context(), "n", 0, page, checksum.Of(page), guarded)
				isStall(t, err, target.Unknown)
				if took := time.Since(began); took != DefaultStall {
					t.Fatalf("it took %s", took)
				}
			})
		})
	}
}

// A slow line is no stall: 4 MiB at 64 KiB/s take 64 s, more than DefaultStall, and are fine.
func TestStallSparesASlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page := make([]byte, 4<<20)
		tgt := overPipe(t, func(c net.Conn) {
			r := bufio.NewReader(c)
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			for {
				pass(time.Second)
				if _, err := io.CopyN(io.Discard, req.Body, 64<<10); err != nil {
					break
				}
			}
			_, _ = io.WriteString(c, "HTTP/1.1 201 Created\r\nx-ms-request-id: r\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		})
		began := time.Now()
		ok(t, tgt.PutPages(t.Context(), "n", 0, page, checksum.Of(page), guarded))
		if took := time.Since(began); took < 2*DefaultStall {
			t.Fatalf("the line was not slow: %s", took)
		}
	})
}

// The same for what is read; and a read that stops half-way ends.
func TestStallOfARead(t *testing.T) {
	for name, sent := range map[string]int{"slow": 100, "stops": 50} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := make([]byte, 100)
				tgt := overPipe(t, func(c net.Conn) {
					if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
						return
					}
					_, _ = io.WriteString(c, "HTTP/1.1 206 Partial Content\r\nx-ms-request-id: r\r\nContent-Length: 100\r\nContent-Range: bytes 0-99/512\r\n\r\n")
					for range sent {
						pass(time.Second)
						_, _ = c.Write([]byte{7})
					}
					_, _ = io.Copy(io.Discard, c)
				})
				err := tgt.ReadPages(t.Context(), "n", "", 0, p)
				if name == "slow" {
					ok(t, err)
					return
				}
				isStall(t, err, target.Known)
			})
		})
	}
}

// The caller's deadline is the caller's, not a stall.
func TestCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tgt := overPipe(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := tgt.Create(ctx, "n", []byte("x"))
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errStalled) || target.OutcomeOf(err) != target.Unknown {
			t.Fatal(err)
		}
	})
}
