package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// job is one load of fio on one file.
type job struct {
	name  string
	rw    string // fio's word
	block int    // bytes
	depth int    // over 1: libaio with O_DIRECT, as a hypervisor does it
	fsync int    // after so many writes, 0: never
	rate  int    // operations a second, 0: as many as go
}

// bandwidth says whether the job's figure is bytes per second, not operations.
func (j job) bandwidth() bool { return j.block >= 1<<20 }

// writes says whether the job writes.
func (j job) writes() bool { return strings.HasSuffix(j.rw, "write") }

// args are fio's for a run of d on a file that exists: without O_DIRECT if it is raw, on its cache.
func (j job) args(v *variant, size int64, d time.Duration) []string {
	a := []string{
		"--name=" + j.name, "--filename=" + v.file, "--rw=" + j.rw, fmt.Sprintf("--bs=%d", j.block), fmt.Sprintf("--size=%d", size),
		"--time_based", fmt.Sprintf("--runtime=%dms", d.Milliseconds()), "--norandommap", "--randrepeat=0", "--allow_file_create=0",
		"--fallocate=none", "--invalidate=0", "--fsync_on_close=0", "--output-format=json", "--thread",
	}
	switch {
	case j.depth > 1:
		a = append(a, "--ioengine=libaio", fmt.Sprintf("--iodepth=%d", j.depth))
	default:
		a = append(a, "--ioengine=psync")
	}
	if j.depth > 1 && !v.raw {
		a = append(a, "--direct=1")
	}
	if v.offset > 0 {
		a = append(a, fmt.Sprintf("--offset=%d", v.offset))
	}
	if j.fsync > 0 {
		a = append(a, fmt.Sprintf("--fsync=%d", j.fsync))
	}
	if j.rate > 0 {
		a = append(a, fmt.Sprintf("--rate_iops=%d", j.rate))
	}
	return a
}

// load is what a job did.
type load struct {
	bytes      int64
	throughput float64 // bytes a second
	iops       float64
	p99, worst time.Duration // of an operation, from its submission to its end
}

// figure is what the job is judged by.
func (l load) figure(j job) float64 {
	if j.bandwidth() {
		return l.throughput
	}
	return l.iops
}

var errNoLoad = errors.New("fio did nothing")

// parseLoad reads the JSON of a run with one job. fio may print warnings before it.
func parseLoad(out []byte) (load, error) {
	i := bytes.IndexByte(out, '{')
	if i < 0 {
		return load{}, fmt.Errorf("%w: %s", errNoLoad, bytes.TrimSpace(out))
	}
	var doc struct {
		Jobs []struct {
			Error       int
			Read, Write direction
		}
	}
	if err := json.NewDecoder(bytes.NewReader(out[i:])).Decode(&doc); err != nil {
		return load{}, fmt.Errorf("fio's output: %w", err)
	}
	if len(doc.Jobs) != 1 {
		return load{}, fmt.Errorf("%w: %d jobs", errNoLoad, len(doc.Jobs))
	}
	j := doc.Jobs[0]
	if j.Error != 0 {
		return load{}, fmt.Errorf("fio: error %d", j.Error)
	}
	d := j.Write
	if j.Read.Bytes > d.Bytes {
		d = j.Read
	}
	if d.Bytes == 0 {
		return load{}, errNoLoad
	}
	return load{
		bytes: d.Bytes, throughput: d.Bandwidth, iops: d.IOPS,
		p99: time.Duration(d.Latency.Percentile["99.000000"]), worst: time.Duration(d.Latency.Max),
	}, nil
}

// direction is fio's account of reads or writes.
type direction struct {
	Bytes     int64   `json:"io_bytes"`
	Bandwidth float64 `json:"bw_bytes"`
	IOPS      float64 `json:"iops"`
	Latency   struct {
		Max        float64
		Percentile map[string]float64
	} `json:"clat_ns"`
}

// run runs the job.
func (j job) run(ctx context.Context, v *variant, size int64, d time.Duration) (load, error) {
	cmd := exec.CommandContext(ctx, "fio", j.args(v, size, d)...)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	out, err := cmd.Output()
	if err != nil {
		return load{}, fmt.Errorf("fio %s on %s: %w: %s", j.name, v.file, err, bytes.TrimSpace(diag.Bytes()))
	}
	l, err := parseLoad(out)
	if err != nil {
		return load{}, fmt.Errorf("fio %s on %s: %w", j.name, v.file, err)
	}
	return l, nil
}
