package metrics

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

const headerTimeout = 10 * time.Second

// Set is every metric of one appliance.
type Set struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	puts     prometheus.Histogram
	sent     prometheus.Counter
	received prometheus.Counter
	stages   *prometheus.HistogramVec
	failures *prometheus.CounterVec
	retries  *prometheus.CounterVec
	points   *prometheus.HistogramVec
	drains   *prometheus.HistogramVec
	guests   *prometheus.HistogramVec
}

// Buckets in seconds and bytes.
var (
	targetSeconds = prometheus.ExponentialBuckets(0.001, 4, 9) // 1 ms … 65 s
	stageSeconds  = prometheus.ExponentialBuckets(0.01, 4, 10) // 10 ms … 44 min
	pointSeconds  = prometheus.ExponentialBuckets(1, 2, 13)    // 1 s … 68 min
	drainSeconds  = prometheus.ExponentialBuckets(1e-5, 4, 11) // 10 µs … 10 s
	guestSeconds  = prometheus.ExponentialBuckets(5e-6, 4, 10) // 5 µs … 1.3 s
	putBytes      = prometheus.ExponentialBuckets(4096, 4, 6)  // 4 KiB … 4 MiB
)

// New makes the set; read is asked at every scrape.
func New(version string, read func() Facts) *Set {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	s := &Set{
		registry: prometheus.NewPedanticRegistry(),
		requests: counter("vhdrelay_target_requests_total", "Requests to the target, by method and code; code is ok or that of the error.", "method", "code"),
		latency:  histogram("vhdrelay_target_request_seconds", "How long requests to the target took.", targetSeconds, "method"),
		puts: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vhdrelay_target_put_bytes",
			Help: "Sizes of page writes to the target.", Buckets: putBytes}),
		sent:     prometheus.NewCounter(prometheus.CounterOpts{Name: "vhdrelay_target_sent_bytes_total", Help: "Payload sent to the target, failed requests included."}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "vhdrelay_target_received_bytes_total", Help: "Payload read from the target."}),
		stages:   histogram("vhdrelay_stage_seconds", "How long a turn of a pipeline stage took.", stageSeconds, "stage"),
		failures: counter("vhdrelay_stage_failures_total", "Turns of a stage that failed, by the code of the error.", "vm", "stage", "code"),
		retries:  counter("vhdrelay_retries_total", "Requests that were repeated, by the code of the error before.", "code"),
		points:   histogram("vhdrelay_point_seconds", "From the seal of an epoch to its durable recovery point.", pointSeconds, "vm"),
		drains:   histogram("vhdrelay_seal_drain_seconds", "How long a seal waited for the guests' writes that were under way.", drainSeconds, "vm"),
		guests:   histogram("vhdrelay_guest_request_seconds", "How long requests of guests took; one in 64 is measured.", guestSeconds, "verb"),
	}
	s.registry.MustRegister(s.requests, s.latency, s.puts, s.sent, s.received, s.stages, s.failures, s.retries, s.points, s.drains, s.guests,
		&gauges{version: version, read: read}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

// Stage counts one turn of a stage.
func (s *Set) Stage(vm, stage string, took time.Duration, err error) {
	s.stages.WithLabelValues(stage).Observe(took.Seconds())
	if err != nil {
		_, code, _, _ := retry.Describe(err)
		s.failures.WithLabelValues(vm, stage, code).Inc()
	}
}

// Retry counts one repetition of a request.
func (s *Set) Retry(err error) {
	_, code, _, _ := retry.Describe(err)
	s.retries.WithLabelValues(code).Inc()
}

// Point notes how long a recovery point took from its seal.
func (s *Set) Point(vm string, took time.Duration) {
	s.points.WithLabelValues(vm).Observe(took.Seconds())
}

// Drain notes how long the writes before a seal took to be answered.
func (s *Set) Drain(vm string, took time.Duration) {
	s.drains.WithLabelValues(vm).Observe(took.Seconds())
}

// Guest notes one request of a guest.
func (s *Set) Guest(verb string, took time.Duration) {
	s.guests.WithLabelValues(verb).Observe(took.Seconds())
}

// Handler answers scrapes.
func (s *Set) Handler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// Serve answers on an address until ctx ends; below /metrics, as everybody expects.
func (s *Set) Serve(ctx context.Context, address string) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.Handler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })() // nobody waits for a scrape
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
