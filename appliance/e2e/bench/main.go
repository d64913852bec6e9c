package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

func main() {
	os.Exit(rig.Main("bench", func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout) }))
}

// bench is one run of the program.
type bench struct {
	ctx    context.Context
	dir    string // of this run, removed at its end
	binary string
	rounds int
	short  bool
	turn   time.Duration // of one variant in one round
	chart  string        // file to draw instead of measuring; "": none
	out    io.Writer     // the report
	log    io.Writer     // progress
}

// measurement is what makes one or more rows.
type measurement struct {
	name string
	run  func(*bench) ([]row, error)
}

func measurements() []measurement {
	return []measurement{
		{"fio", (*bench).matrix},
		{"formats", (*bench).formats},
		{"latency", (*bench).latency},
		{"state", (*bench).stateDisk},
		{"ship", (*bench).shipping},
		{"scan", (*bench).scan},
		{"crash", (*bench).crash},
		{"memory", (*bench).memory},
		{"deaths", (*bench).deaths},
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	b, which, err := configure(args, out)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it mounts file systems: run it as root")
	}
	b.ctx = ctx
	if b.dir, err = os.MkdirTemp(b.dir, "vhdrelay-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.chart != "" {
		return b.drawLatency(b.chart)
	}
	describe(b.out, b.dir)
	rows, err := b.measure(which)
	if len(rows) > 0 {
		fmt.Fprintln(b.out)
		printTable(b.out, rows)
	}
	return err
}

// configure reads the arguments; which selects measurements by name.
func configure(args []string, out io.Writer) (b *bench, which *regexp.Regexp, err error) {
	b = &bench{out: out, log: os.Stderr}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	pattern := flags.String("run", "", "only the measurements whose name matches: fio, formats, latency, state, ship, scan, crash, memory, deaths")
	flags.IntVar(&b.rounds, "rounds", 5, "rounds of the interleaved measurements")
	flags.BoolVar(&b.short, "short", false, "smaller files, fewer and shorter rounds: for a look, not for the README")
	flags.DurationVar(&b.turn, "turn", 2*time.Second, "how long each variant runs in a round")
	flags.StringVar(&b.dir, "dir", os.TempDir(), "where the files lie: a file system with 8 GiB free")
	flags.StringVar(&b.binary, "binary", filepath.Join("bin", "vhdrelay"), "the appliance")
	flags.StringVar(&b.chart, "chart", "", "draw a guest's write latency across a kill and an upgrade into this file (SVG), and measure nothing else")
	if err := flags.Parse(args); err != nil {
		return nil, nil, err
	}
	if b.chart, err = chartFile(b.chart); err != nil {
		return nil, nil, err
	}
	if b.short {
		b.rounds, b.turn = min(b.rounds, 3), min(b.turn, time.Second)
	}
	if b.rounds < 1 || b.turn <= 0 {
		return nil, nil, errors.New("rounds and turn must be positive")
	}
	if b.binary, err = filepath.Abs(b.binary); err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(b.binary); err != nil {
		return nil, nil, fmt.Errorf("no appliance, run make build: %w", err)
	}
	which, err = regexp.Compile(*pattern)
	return b, which, err
}

// measure runs what is selected. One that fails does not stop the others.
func (b *bench) measure(which *regexp.Regexp) ([]row, error) {
	var rows []row
	var errs []error
	for _, m := range measurements() {
		if !which.MatchString(m.name) || b.ctx.Err() != nil {
			continue
		}
		begun := time.Now()
		b.progress("%s", m.name)
		got, err := m.run(b)
		rows = append(rows, got...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
			b.progress("%s: %v", m.name, err)
		}
		b.progress("%s took %v", m.name, time.Since(begun).Round(time.Second))
	}
	return rows, errors.Join(append(errs, b.ctx.Err())...)
}

func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(b.log, "bench: "+format+"\n", args...)
}

// size is a file's: a quarter with -short.
func (b *bench) size(full int64) int64 {
	if b.short {
		return full / 4
	}
	return full
}

// place makes a directory of the run.
func (b *bench) place(names ...string) (string, error) {
	dir := filepath.Join(append([]string{b.dir}, names...)...)
	return dir, os.MkdirAll(dir, 0o700)
}

// command runs a program and returns what it printed.
func (b *bench) command(name string, args ...string) (string, error) {
	out, err := exec.CommandContext(b.ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return string(out), nil
}

// settle writes a file back, so that the next measurement does not pay for the last one.
func settle(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fdatasync(int(f.Fd()))
}
