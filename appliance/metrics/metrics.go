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
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: prefix, Name: "build_info", Help: "1, with the build in the labels.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build, m.requests, m.elapsed, m.streams)
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

// Stream counts a client that follows the events, until the function that it returns is called.
func (m *Metrics) Stream() (end func()) {
	m.streams.Inc()
	return m.streams.Dec
}
