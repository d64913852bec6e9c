// Agent does in the guest what the host asks for over a virtio-serial port (package wire). It knows nothing of the test.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest/wire"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

func main() {
	port, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	if err == nil {
		err = newAgent(port).serve(bufio.NewReaderSize(port, 1<<20))
	}
	fmt.Fprintln(os.Stderr, "agent:", err)
	os.Exit(1) // systemd starts the next one
}

type agent struct {
	life string
	out  struct {
		sync.Mutex // held over the write of one line
		port       *os.File
	}
	files struct {
		sync.Mutex // held while a file is opened
		open       map[wire.File]*os.File
	}
}

func newAgent(port *os.File) *agent {
	a := &agent{life: rand.Text()}
	a.out.port = port
	a.files.open = map[wire.File]*os.File{}
	return a
}

// serve says hello and answers until the port ends. Every request is worked on at once.
func (a *agent) serve(in *bufio.Reader) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	// The empty line ends what an agent before this one may have left half said.
	if err := a.say(wire.Answer{Life: a.life, Boot: strings.TrimSpace(string(boot))}, "\n"); err != nil {
		return err
	}
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return err
		}
		var req wire.Request
		if json.Unmarshal(line, &req) != nil || req.Life != a.life {
			continue // of another life
		}
		go func() {
			answer := a.do(req)
			answer.ID = req.ID
			_ = a.say(answer, "") // if the port is gone the reader says so
		}()
	}
}

func (a *agent) say(answer wire.Answer, before string) error {
	line, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	a.out.Lock()
	defer a.out.Unlock()
	_, err = fmt.Fprintf(a.out.port, "%s%s\n", before, line)
	return err
}

func (a *agent) do(req wire.Request) wire.Answer {
	var err error
	switch {
	case req.Exec != nil:
		return run(*req.Exec)
	case req.Put != nil:
		err = put(*req.Put)
	case req.Write != nil:
		err = a.write(*req.Write)
	case req.Sync != nil:
		var f *os.File
		if f, err = a.file(req.Sync.File); err == nil {
			err = f.Sync()
		}
	case req.Close != nil:
		a.closeAll()
	default:
		err = errors.New("an empty request")
	}
	if err != nil {
		return wire.Answer{Error: err.Error()}
	}
	return wire.Answer{}
}

func run(e wire.Exec) wire.Answer {
	cmd := exec.Command(e.Args[0], e.Args[1:]...)
	cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=cat")
	cmd.Stdin = bytes.NewReader(e.Stdin)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	err := cmd.Run()
	answer := wire.Answer{Out: out.Bytes(), Diag: diag.Bytes()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		answer.Code = exit.ExitCode()
	} else if err != nil {
		answer.Error = err.Error()
	}
	return answer
}

func put(p wire.Put) error {
	if err := os.MkdirAll(filepath.Dir(p.Path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(p.Path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, os.FileMode(p.Mode))
	if err != nil {
		return err
	}
	_, err = f.Write(p.Data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(p.Path+".new", p.Path)
}

// file opens a file once.
func (a *agent) file(name wire.File) (*os.File, error) {
	a.files.Lock()
	defer a.files.Unlock()
	if f := a.files.open[name]; f != nil {
		return f, nil
	}
	f, err := os.OpenFile(name.Path, name.Flags, 0)
	if err == nil {
		a.files.open[name] = f
	}
	return f, err
}

// closeAll closes what is open. How a close ends says nothing here: what was written was answered.
func (a *agent) closeAll() {
	a.files.Lock()
	defer a.files.Unlock()
	for name, f := range a.files.open {
		_ = f.Close()
		delete(a.files.open, name)
	}
}

func (a *agent) write(w wire.Write) error {
	f, err := a.file(w.File)
	if err != nil {
		return err
	}
	p := aligned(int(w.Count) * stamp.BlockSize)
	for i := range int64(w.Count) {
		stamp.Stamp{ID: w.ID, Seq: w.Seq, Block: w.First + i, First: w.First, Count: w.Count, Writer: w.Writer, Disk: w.Disk}.Put(p[i*stamp.BlockSize:])
	}
	_, err = f.WriteAt(p, w.First*stamp.BlockSize)
	return err
}

// aligned returns n bytes that O_DIRECT takes.
func aligned(n int) []byte {
	p := make([]byte, n+stamp.BlockSize)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) & (stamp.BlockSize - 1)
	return p[off : off+n]
}
