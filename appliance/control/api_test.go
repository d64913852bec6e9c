package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStatusAndPointsCrossTheSocket(t *testing.T) {
	rpo := 3.5
	local := time.Date(2026, 3, 1, 9, 0, 0, 0, time.FixedZone("CET", 3600))
	client, _ := serve(t, &fake{
		status: func(_ context.Context, vm string) (Status, error) {
			return Status{Version: "1.0", VMs: []VM{{Name: vm, State: "Replicating", Health: HealthNormal, DurableRPOSeconds: &rpo,
				LastPoint: &Point{"1-12", 1, 12, local}}}}, nil
		},
		points: func(_ context.Context, vm string) (Points, error) {
			return Points{VM: vm, Points: []RecoveryPoint{{Point: Point{"1-12", 1, 12, local}, Consistency: ConsistencyCrash}}}, nil
		},
	})
	s, err := client.Status(deadline(t), "web 01&x=y")
	if err != nil {
		t.Fatal(err)
	}
	if vm := s.VMs[0]; vm.Name != "web 01&x=y" || *vm.DurableRPOSeconds != rpo || !vm.LastPoint.Time.Equal(local) {
		t.Errorf("%+v", vm)
	}
	p, err := client.Points(deadline(t), "web01")
	if err != nil || p.VM != "web01" || p.Points[0].Epoch != 12 || p.Points[0].Time.Location() != time.UTC {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSyncStreamsProgressThenTheResult(t *testing.T) {
	client, _ := serve(t, &fake{sync: func(_ context.Context, vm string, wait bool, progress func(Progress)) (SyncResult, error) {
		for i := range int64(3) {
			progress(Progress{Stage: "shipping", Item: vm, Done: i, Total: 3})
		}
		if !wait {
			return SyncResult{}, errors.New("wait was lost")
		}
		return SyncResult{Epoch: 12, Point: "1-12"}, nil
	}})
	var got []int64
	res, err := client.Sync(deadline(t), "web01", true, func(p Progress) { got = append(got, p.Done) })
	if err != nil || res != (SyncResult{12, "1-12"}) {
		t.Errorf("%+v, %v", res, err)
	}
	if !slices.Equal(got, []int64{0, 1, 2}) {
		t.Errorf("progress %v", got)
	}
	if res, err := client.Sync(deadline(t), "web01", true, nil); err != nil || res.Epoch != 12 {
		t.Errorf("without a progress function: %+v, %v", res, err)
	}
}

// Progress must arrive while the call lasts: the backend waits here until the client has seen it.
func TestProgressIsNotHeldBack(t *testing.T) {
	seen := make(chan struct{})
	client, _ := serve(t, &fake{sync: func(ctx context.Context, _ string, _ bool, progress func(Progress)) (SyncResult, error) {
		progress(Progress{Stage: "sealing"})
		select {
		case <-seen:
			return SyncResult{Epoch: 1}, nil
		case <-ctx.Done():
			return SyncResult{}, ctx.Err()
		}
	}})
	if _, err := client.Sync(deadline(t), "a", false, func(Progress) { close(seen) }); err != nil {
		t.Fatal(err)
	}
}

func TestResyncCarriesDiskAndOptions(t *testing.T) {
	client, _ := serve(t, &fake{resync: func(_ context.Context, vm, disk string, o ResyncOptions, _ func(Progress)) (Resync, error) {
		return Resync{State: ResyncIdle, Reason: fmt.Sprint(vm, " ", disk, " ", o)}, nil
	}})
	res, err := client.Resync(deadline(t), "web", "sub/os.vhd", ResyncOptions{Now: true, Deep: true}, nil)
	if want := "web sub/os.vhd {true true false}"; err != nil || res.Reason != want {
		t.Errorf("%+v, %v, want %s", res, err, want)
	}
}

func TestJournal(t *testing.T) {
	text := strings.Repeat("line of the dump \xff\n", 10_000)
	client, _ := serve(t, &fake{
		check: func(context.Context) error { return errors.New("region 7 is active twice") },
		dump: func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		},
	})
	if err := client.JournalCheck(deadline(t)); err == nil || err.Error() != "region 7 is active twice" {
		t.Errorf("check: %v", err)
	}
	var out bytes.Buffer
	if err := client.JournalDump(deadline(t), &out, DumpOptions{}); err != nil || out.String() != text {
		t.Errorf("dump: %v, %d bytes of %d", err, out.Len(), len(text))
	}
	broken := errors.New("the pipe is closed")
	if err := client.JournalDump(deadline(t), writerFunc(func([]byte) (int, error) { return 0, broken }), DumpOptions{}); !errors.Is(err, broken) {
		t.Errorf("dump into a closed pipe: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestErrorsCrossTheSocketWhole(t *testing.T) {
	refused := Refused("vm_paused", "vhdrelay resume web", "web is paused")
	for name, c := range map[string]struct {
		err  error
		want Error
	}{
		"not found": {NotFound("vhdrelay status lists them", "no VM %q", "x"),
			Error{Code: CodeNotFound, Message: `no VM "x"`, Action: "vhdrelay status lists them", Exit: ExitNotFound}},
		"refused": {refused, *refused},
		"wrapped keeps the outer message": {fmt.Errorf("syncing: %w", refused),
			Error{Code: "vm_paused", Message: "syncing: web is paused", Action: "vhdrelay resume web", Exit: ExitRefused}},
		"any other": {errors.New("disk on fire"), Error{Code: CodeInternal, Message: "disk on fire", Exit: ExitFailed}},
	} {
		client, _ := serve(t, &fake{
			status: func(context.Context, string) (Status, error) { return Status{}, c.err },
			sync:   func(context.Context, string, bool, func(Progress)) (SyncResult, error) { return SyncResult{}, c.err },
		})
		_, plain := client.Status(deadline(t), "x")
		_, streamed := client.Sync(deadline(t), "x", false, nil)
		for how, err := range map[string]error{"document": plain, "stream": streamed} {
			var got *Error
			if !errors.As(err, &got) || !reflect.DeepEqual(*got, c.want) {
				t.Errorf("%s, %s: %+v, want %+v", name, how, err, c.want)
			}
			if !errors.Is(err, &Error{Code: c.want.Code}) || errors.Is(err, &Error{Code: "another"}) {
				t.Errorf("%s, %s: errors.Is does not go by the code", name, how)
			}
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	client, stop := serve(t, &fake{})
	stop()
	_, err := client.Status(deadline(t), "")
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeUnreachable || e.Exit != ExitUnreachable || e.Action == "" || e.Err == nil {
		t.Errorf("%+v", err)
	}
}

// An appliance that stops tells the commands that wait, and ends although they would go on.
func TestStoppingEndsStreams(t *testing.T) {
	begun := make(chan struct{})
	client, stop := serve(t, &fake{sync: func(ctx context.Context, _ string, _ bool, _ func(Progress)) (SyncResult, error) {
		close(begun)
		<-ctx.Done()
		return SyncResult{}, ctx.Err()
	}})
	answer := make(chan error, 1)
	go func() {
		_, err := client.Sync(context.Background(), "a", true, nil)
		answer <- err
	}()
	<-begun
	stop()
	if err := <-answer; !errors.Is(err, &Error{Code: CodeInterrupted}) {
		t.Errorf("%v", err)
	}
}

// A backend that panics kills its answer and nothing else.
func TestCutStreamIsNotSuccess(t *testing.T) {
	client, _ := serve(t, &fake{
		sync:   func(context.Context, string, bool, func(Progress)) (SyncResult, error) { panic("bug") },
		status: func(context.Context, string) (Status, error) { return Status{}, nil },
	})
	_, err := client.Sync(deadline(t), "a", true, nil)
	if !errors.Is(err, &Error{Code: CodeInterrupted}) {
		t.Errorf("%v", err)
	}
	if _, err := client.Status(deadline(t), ""); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestCancelledClientStopsTheWait(t *testing.T) {
	gone := make(chan struct{})
	client, _ := serve(t, &fake{sync: func(ctx context.Context, _ string, _ bool, progress func(Progress)) (SyncResult, error) {
		progress(Progress{Stage: "waiting"})
		<-ctx.Done()
		close(gone)
		return SyncResult{}, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(deadline(t))
	if _, err := client.Sync(ctx, "a", true, func(Progress) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-gone
}

func TestBadRequests(t *testing.T) {
	h := Handler(&fake{})
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", pathSync, "{", http.StatusBadRequest},
		{"POST", pathSync, `{"vm":"` + strings.Repeat("x", maxRequest) + `"}`, http.StatusBadRequest},
		{"GET", pathSync, "", http.StatusMethodNotAllowed},
		{"GET", "/v1/nothing", "", http.StatusNotFound},
		{"GET", pathStatus, "", http.StatusInternalServerError},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if w.Code != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.want)
		}
	}
}

func TestHTTPStatusOfExits(t *testing.T) {
	for exit, want := range map[Exit]int{ExitUsage: 400, ExitNotFound: 404, ExitRefused: 409, ExitFailed: 500, ExitDiffers: 500} {
		if got := httpStatus(exit); got != want {
			t.Errorf("exit %d: %d, want %d", exit, got, want)
		}
	}
}

// keys returns the keys of every object in a JSON document, in the order of the text.
func keys(t *testing.T, doc any) string {
	t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The documents of the design, to the letter: fields may be added, none renamed.
func TestGoldenDocuments(t *testing.T) {
	at := time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	rpo := 3.2
	status := Status{Version: "1.0", VMs: []VM{{
		Name: "web01", State: "Replicating", Health: HealthNormal,
		Reasons:         []Reason{{Code: "c", Severity: SeverityWarning, Message: "m", Action: "a", Since: at}},
		IntervalSeconds: 30, LastPoint: &Point{"1-12", 1, 12, at}, DurableRPOSeconds: &rpo, AppliedEpoch: 12,
		Resync: Resync{State: ResyncIdle},
		Disks:  []Disk{{Name: "os.vhd", Format: "vhd-fixed", VirtualSize: 1 << 30}}, Recovery: Recovery{Reason: "r"},
	}}}
	wantStatus := `{"version":"1.0","vms":[{"name":"web01","state":"Replicating","health":"Normal",` +
		`"reasons":[{"code":"c","severity":"warning","message":"m","action":"a","since":"2026-03-01T08:00:00Z"}],` +
		`"interval_seconds":30,"last_point":{"id":"1-12","generation":1,"epoch":12,"time":"2026-03-01T08:00:00Z"},` +
		`"durable_rpo_seconds":3.2,"pending_bytes":0,"spooled_bytes":0,"apply_backlog_bytes":0,"applied_epoch":12,` +
		`"resync":{"state":"idle","compared_bytes":0,"total_bytes":0,"differing_bytes":0},` +
		`"disks":[{"name":"os.vhd","format":"vhd-fixed","virtual_size":1073741824,"initial_replication":{"done_bytes":0,"total_bytes":0}}],` +
		`"recovery":{"suspect_bytes":0,"compared_bytes":0,"differing_bytes":0,"reason":"r"}}]}`
	if got := keys(t, status); got != wantStatus {
		t.Errorf("status\ngot  %s\nwant %s", got, wantStatus)
	}
	points := Points{VM: "web01", Points: []RecoveryPoint{{Point: Point{"1-12", 1, 12, at}, Consistency: ConsistencyCrash,
		Disks: []PointDisk{{"os.vhd", 1 << 30, 524288, 131072}}}}}
	wantPoints := `{"vm":"web01","points":[{"id":"1-12","generation":1,"epoch":12,"time":"2026-03-01T08:00:00Z","consistency":"crash",` +
		`"snapshot":false,"disks":[{"name":"os.vhd","virtual_size":1073741824,"changed_bytes":524288,"stored_bytes":131072}]}]}`
	if got := keys(t, points); got != wantPoints {
		t.Errorf("points\ngot  %s\nwant %s", got, wantPoints)
	}
}

func TestNormalDocumentsHaveNoNullLists(t *testing.T) {
	if got := keys(t, Status{}.Normal()); got != `{"version":"","vms":[]}` {
		t.Error(got)
	}
	if got := keys(t, Points{VM: "a"}.Normal()); got != `{"vm":"a","points":[]}` {
		t.Error(got)
	}
	given := Status{VMs: []VM{{StateSince: time.Unix(0, 0).In(time.FixedZone("", 60)), LastPoint: &Point{Time: time.Unix(0, 0).In(time.FixedZone("", 60))}}}}
	normal := given.Normal()
	if normal.VMs[0].Reasons == nil || normal.VMs[0].Disks == nil || normal.VMs[0].StateSince.Location() != time.UTC {
		t.Errorf("%+v", normal)
	}
	if given.VMs[0].Reasons != nil || given.VMs[0].LastPoint.Time.Location() == time.UTC {
		t.Error("Normal changed what it was given")
	}
}
