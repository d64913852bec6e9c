package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// output is fio's, cut to what is read.
const output = `fio: a warning that is no JSON
{"fio version":"fio-3.33","jobs":[{"jobname":"x","error":0,
 "read":{"io_bytes":0,"bw_bytes":0,"iops":0.0,"clat_ns":{"max":0}},
 "write":{"io_bytes":1073741824,"bw_bytes":536870912,"iops":512.5,"clat_ns":{"max":900000,"percentile":{"50.000000":1000,"99.000000":250000}}},
 "trim":{"io_bytes":0}}]}`

func TestParseLoad(t *testing.T) {
	l, err := parseLoad([]byte(output))
	if err != nil {
		t.Fatal(err)
	}
	if want := (load{bytes: 1 << 30, throughput: 512 << 20, iops: 512.5, p99: 250 * time.Microsecond, worst: 900 * time.Microsecond}); l != want {
		t.Errorf("%+v, want %+v", l, want)
	}
	if l.figure(job{block: 1 << 20}) != 512<<20 || l.figure(job{block: 4096}) != 512.5 {
		t.Error("a job is judged by the wrong figure")
	}
	l, err = parseLoad([]byte(strings.NewReplacer(`"read":{"io_bytes":0`, `"read":{"io_bytes":2147483648`).Replace(output)))
	if err != nil || l.bytes != 2<<30 {
		t.Errorf("reads are not seen: %+v, %v", l, err)
	}
}

func TestParseLoadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":   "",
		"no JSON":   "fio: cannot open",
		"cut":       output[:200],
		"no job":    `{"jobs":[]}`,
		"two jobs":  `{"jobs":[{},{}]}`,
		"idle":      `{"jobs":[{"read":{},"write":{}}]}`,
		"its error": `{"jobs":[{"error":28,"write":{"io_bytes":4096}}]}`,
	} {
		if l, err := parseLoad([]byte(text)); err == nil {
			t.Errorf("%s: %+v and no error", name, l)
		}
	}
	if _, err := parseLoad([]byte(`{"jobs":[{"read":{},"write":{}}]}`)); !errors.Is(err, errNoLoad) {
		t.Errorf("idle: %v", err)
	}
}

func TestJobArguments(t *testing.T) {
	deep := job{name: "n", rw: "randwrite", block: 4096, depth: 32, fsync: 0}
	for _, c := range []struct {
		job      job
		variant  variant
		has, not []string
	}{
		{deep, variant{file: "f"}, []string{"--ioengine=libaio", "--iodepth=32", "--direct=1", "--runtime=1500ms", "--bs=4096", "--filename=f", "--size=8192"}, []string{"--fsync=32", "--offset=0"}},
		{deep, variant{raw: true, offset: 3072}, []string{"--ioengine=libaio", "--offset=3072"}, []string{"--direct=1"}},
		{job{depth: 1, fsync: 32, rate: 9}, variant{}, []string{"--ioengine=psync", "--fsync=32", "--rate_iops=9"}, []string{"--direct=1", "--ioengine=libaio"}},
	} {
		args := c.job.args(&c.variant, 8192, 1500*time.Millisecond)
		for _, a := range c.has {
			if !slices.Contains(args, a) {
				t.Errorf("%+v: %s is missing in %v", c.job, a, args)
			}
		}
		for _, a := range c.not {
			if slices.Contains(args, a) {
				t.Errorf("%+v: %s is there", c.job, a)
			}
		}
	}
}
