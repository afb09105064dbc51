package metrics

import (
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// prefix of all names.
const prefix = "cairn"

// Build is which program this is.
type Build struct{ Version, Commit string }

// Metrics has all series of a process. Its methods may be called from several goroutines.
type Metrics struct {
	registry *prometheus.Registry
	handler  http.Handler

	requests *prometheus.CounterVec
	elapsed  *prometheus.HistogramVec
	streams  prometheus.Gauge

	jobs     *prometheus.CounterVec
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
}

// New makes the series of a process.
func New(b Build, log *slog.Logger) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: prefix, Name: "http_requests_total", Help: "Requests that were answered.",
		}, []string{"method", "route", "status"}),
		elapsed: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: prefix, Name: "http_request_duration_seconds", Help: "Time until a request was answered, event streams left out.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"method", "route"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: prefix, Name: "event_streams", Help: "Clients that follow the events now.",
		}),
	}
	m.jobs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: prefix, Name: "job_runs_total", Help: "Tasks that have ended.",
	}, []string{"kind", "result"})
	m.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: prefix, Name: "job_duration_seconds", Help: "How long tasks took from their start to their end.",
		Buckets: []float64{1, 5, 15, 60, 300, 900, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 24 * 3600},
	}, []string{"kind"})
	m.bytes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: prefix, Name: "bytes_total",
		Help: "Bytes of tasks that have ended: looked at (scanned), moved (read), new to the repository (new), and what these take there (stored).",
	}, []string{"kind", "stage"})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: prefix, Name: "build_info", Help: "1, with the build in the labels.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build, m.requests, m.elapsed, m.streams, m.jobs, m.duration, m.bytes)
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true,
	})
	return m
}

// ServeHTTP answers with all series, as text or in the format of OpenMetrics.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler.ServeHTTP(w, r) }

// Request counts a request. route is the pattern that its path matched, never the path: clients must not be able to make
// series.
func (m *Metrics) Request(method, route string, status int, elapsed time.Duration) {
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.elapsed.WithLabelValues(method, route).Observe(elapsed.Seconds())
}

// Watch adds what is read of the appliance whenever somebody reads the metrics; with vms also the series of each VM.
func (m *Metrics) Watch(s Source, vms bool, log *slog.Logger) {
	m.registry.MustRegister(newCollector(s, vms, log))
}

// Job is a task that has ended.
type Job struct {
	Kind, Result               string
	Took                       time.Duration // 0 when it never began
	Scanned, Read, New, Stored int64
}

// JobEnded counts a task.
func (m *Metrics) JobEnded(j Job) {
	m.jobs.WithLabelValues(j.Kind, j.Result).Inc()
	if j.Took > 0 {
		m.duration.WithLabelValues(j.Kind).Observe(j.Took.Seconds())
	}
	for stage, n := range map[string]int64{"scanned": j.Scanned, "read": j.Read, "new": j.New, "stored": j.Stored} {
		m.bytes.WithLabelValues(j.Kind, stage).Add(float64(max(0, n)))
	}
}

// Stream counts a client that follows the events, until the function that it returns is called.
func (m *Metrics) Stream() (end func()) {
	m.streams.Inc()
	return m.streams.Dec
}
