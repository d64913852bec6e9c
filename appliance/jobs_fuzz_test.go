package appliance

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"
)

// oneJob is a store with one record.
type oneJob struct {
	jobStore
	data []byte
}

func (o oneJob) Keys(prefix string) ([]string, error) { return []string{prefix + "1"}, nil }

func (o oneJob) Load(_ string, v any) (bool, error) { return true, json.Unmarshal(o.data, v) }

// FuzzJobs: a record of a job that cannot be read is left out, and no record keeps the appliance from its start.
func FuzzJobs(f *testing.F) {
	f.Add([]byte(`{"id":"7","kind":"resync","vm":"web01","state":"running","steps":[{"name":"compare","state":"running"}]}`))
	f.Add([]byte(`{"id":-1}`))
	f.Add([]byte(`{"id":"99999999999999999999"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := openJobs(oneJob{data: data}, time.Now, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, new(jobRecord)); (err == nil) != (len(table.mu.all) == 1) {
			t.Errorf("%d jobs, %v", len(table.mu.all), err)
		}
	})
}
