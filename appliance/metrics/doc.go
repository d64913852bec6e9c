// Package metrics shows the appliance to Prometheus: gauges that are read from the status at every scrape, so that they
// never say anything else than it does, and counters and histograms of what happens between scrapes. It owns
// prometheus/client_golang. alerts.yaml and dashboard.json beside it use the names it exports; a test compares them.
//
// A listener that cannot be had is a warning: the appliance goes on. It keeps no file.
package metrics
