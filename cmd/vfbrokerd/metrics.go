package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"vfbroker/broker"
)

// metrics are the daemon's. Functions are counted when they are asked for, so
// an idle daemon does nothing for them.
type metrics struct {
	registry   *prometheus.Registry
	steps      *prometheus.HistogramVec
	operations *prometheus.CounterVec
	broker     atomic.Pointer[broker.Broker] // nil until it is open
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "vfbroker_step_duration_seconds",
			Help:    "Duration of the steps of an acquire or release.",
			Buckets: prometheus.ExponentialBucketsRange(0.001, 120, 16),
		}, []string{"step"}),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vfbroker_lease_operations_total",
			Help: "Calls that change leases or functions, by operation and result (ok or the reason of the error).",
		}, []string{"op", "result"}),
	}
	m.registry.MustRegister(m.steps, m.operations, functionCollector{m},
		collectors.NewBuildInfoCollector(),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// onStep notes how long a step took.
func (m *metrics) onStep(step broker.StepName, d time.Duration) {
	m.steps.WithLabelValues(string(step)).Observe(d.Seconds())
}

// onCall counts a call of the API, unless it only asks.
func (m *metrics) onCall(method, result string) {
	switch method {
	case "Acquire", "Release", "Renew", "Carve", "Clear":
		m.operations.WithLabelValues(strings.ToLower(method), strings.ToLower(result)).Inc()
	}
}

var (
	functionsDesc = prometheus.NewDesc("vfbroker_functions",
		"Functions of the host, by PF and state.", []string{"pf", "state"}, nil)
	leasesDesc = prometheus.NewDesc("vfbroker_leases",
		"Leases that hold a function, by state.", []string{"state"}, nil)
	driftDesc = prometheus.NewDesc("vfbroker_drift",
		"PFs and VFs that differ from what the broker set, by PF and kind; none where nothing differs or is looked for.", []string{"pf", "kind"}, nil)
	behindDesc = prometheus.NewDesc("vfbroker_journal_behind",
		"1 while the journal could not be written and lacks what was done since: nothing is granted; else 0.", nil, nil)
	// In OpenMetrics a counter's _total is no part of its name, which must not be the gauge's.
	driftSeenDesc = prometheus.NewDesc("vfbroker_drift_seen_total",
		"Differences from what the broker set that were seen since the daemon began, by kind.", []string{"kind"}, nil)
)

// driftKinds are all there are.
var driftKinds = [...]broker.DriftKind{broker.DriftNumVFs, broker.DriftGone, broker.DriftDriver, broker.DriftIsolation, broker.DriftAttributes}

// functionCollector reports the broker's counts of the moment.
type functionCollector struct{ m *metrics }

// Describe implements prometheus.Collector.
func (functionCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- functionsDesc
	ch <- leasesDesc
	ch <- driftDesc
	ch <- driftSeenDesc
	ch <- behindDesc
}

// Collect implements prometheus.Collector.
func (c functionCollector) Collect(ch chan<- prometheus.Metric) {
	b := c.m.broker.Load()
	if b == nil { // unknown, not zero
		return
	}
	stats := b.Stats()
	for pf, states := range stats.Functions {
		for state, n := range states {
			ch <- prometheus.MustNewConstMetric(functionsDesc, prometheus.GaugeValue, float64(n), pf, string(state))
		}
	}
	for _, state := range []broker.LeaseState{broker.Pending, broker.Active, broker.Releasing} {
		ch <- prometheus.MustNewConstMetric(leasesDesc, prometheus.GaugeValue, float64(stats.Leases[state]), string(state))
	}
	behind := 0.0
	if stats.Behind {
		behind = 1
	}
	ch <- prometheus.MustNewConstMetric(behindDesc, prometheus.GaugeValue, behind)
	for pf, kinds := range stats.Drift {
		for kind, n := range kinds {
			ch <- prometheus.MustNewConstMetric(driftDesc, prometheus.GaugeValue, float64(n), pf, string(kind))
		}
	}
	for _, kind := range driftKinds {
		ch <- prometheus.MustNewConstMetric(driftSeenDesc, prometheus.CounterValue, float64(stats.Drifted[kind]), string(kind))
	}
}

// maxScrapes bounds connections to the metrics' socket, and scrapes at a time.
const maxScrapes = 16

// serve answers scrapes on l until ctx ends.
func (m *metrics) serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry:            m.registry,
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		EnableOpenMetrics:   true,
	}))
	server := &http.Server{
		Handler:        mux,
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   30 * time.Second,
		IdleTimeout:    5 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(netutil.LimitListener(l, maxScrapes)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}
