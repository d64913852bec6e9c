package config

import (
	"slices"
	"time"
)

// The defaults of every key that has one.
const (
	// DefaultPath is where every command looks for the config.
	DefaultPath          = "/etc/vhdrelay/vhdrelay.yaml"
	DefaultStateDir      = "/var/lib/vhdrelay"
	DefaultControlSocket = "/run/vhdrelay/control.sock"
	DefaultMetricsListen = "127.0.0.1:9469"

	DefaultInterval      = 30 * time.Second
	DefaultApplyInterval = 5 * time.Minute
	DefaultDense         = 2 * time.Hour
	DefaultHourly        = 24 * time.Hour
	DefaultDaily         = 7 * Day
	DefaultCompression   = CompressionFastest

	DefaultThreshold  = 0.5
	DefaultOverflow   = OverflowNow
	DefaultWindowFrom = TimeOfDay(18 * 60)
	DefaultWindowTo   = TimeOfDay(8 * 60)
)

// The ranges of the values that have one, ends included. Sizes are in bytes, a bandwidth limit in bytes per second.
const (
	MinInterval       = 5 * time.Second
	MaxInterval       = 24 * time.Hour
	MinApplyInterval  = time.Second
	MaxApplyInterval  = 24 * time.Hour
	MaxRetention      = 3650 * Day
	MinSpoolLimit     = 16 << 20
	MaxSpoolLimit     = 1 << 50
	MinBandwidthLimit = 16 << 10
	MaxBandwidthLimit = 1 << 40
	MinScrub          = Day
	MaxScrub          = 365 * Day
	MinThreshold      = 0.01
	MaxThreshold      = 1.0
	// MaxSocketPath is the length of a unix socket's path that fits sockaddr_un, see unix(7).
	MaxSocketPath = 107
)

// Compression is how hard a segment's payload is compressed.
type Compression string

// The levels of compression, from none to most.
const (
	CompressionOff     Compression = "off"
	CompressionFastest Compression = "fastest"
	CompressionDefault Compression = "default"
	CompressionBetter  Compression = "better"
	CompressionBest    Compression = "best"
)

// CredentialType names how the appliance proves itself to the target.
type CredentialType string

// The kinds of credentials. All but CredentialDefault are read from a file.
const (
	CredentialDefault          CredentialType = "default"
	CredentialConnectionString CredentialType = "connection_string"
	CredentialSharedKey        CredentialType = "shared_key"
	CredentialSAS              CredentialType = "sas"
)

// Overflow says when a disk whose changes outgrew the threshold is caught up.
type Overflow string

// The two answers: at once, or in the resync window.
const (
	OverflowNow    Overflow = "now"
	OverflowWindow Overflow = "window"
)

// Config is the whole file, defaults filled in and checked.
type Config struct {
	// Path is the file it was read from, "" when it came from elsewhere.
	Path          string
	StateDir      string
	ControlSocket string
	Stores        []Store
	Target        Target
	Replication   Replication
	Bandwidth     []Bandwidth
	// MetricsListen is host:port, or "" for no metrics.
	MetricsListen string
	Resync        Resync
}

// Store is a source directory and the mount that serves it. Both are absolute, clean paths.
type Store struct {
	Name, Source, Mount string
	VMs                 []VM
}

// VM names the disks of a store that are sealed together, where the default (a directory is a VM) does not do.
type VM struct {
	Name string
	// Disks and Exclude are globs as in path.Match over paths relative to the store's source. A disk belongs to the VM if
	// one of Disks matches and none of Exclude. No Disks: the directory of the VM's name.
	Disks, Exclude []string
	Overrides      Overrides
}

// Target is where recovery points go.
type Target struct {
	// URL is https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX], http to a loopback address, or dir:///PATH.
	URL string
	// CAFile is a PEM file of extra roots, "" for none.
	CAFile      string
	Credentials Credentials
}

// Credentials say how to prove the identity that URL names. The file holds the secret; the config never does.
type Credentials struct {
	Type CredentialType
	File string
}

// Replication is what one VM may have differently from another.
type Replication struct {
	Interval      time.Duration
	ApplyInterval time.Duration
	Points        RecoveryPoints
	Compression   Compression
	// SpoolLimit is in bytes; 0 means half the virtual size of the VM's disks.
	SpoolLimit int64
	// Tracking false serves the store without recording changes. Nothing is replicated then; it exists for measurements.
	Tracking bool
}

// RecoveryPoints is the retention policy: every point for Dense, one an hour for Hourly, one a day for Daily, each counted
// back from the newest point.
type RecoveryPoints struct{ Dense, Hourly, Daily time.Duration }

// Overrides are the keys of replication a VM sets for itself; nil means not set.
type Overrides struct {
	Interval, ApplyInterval *time.Duration
	Dense, Hourly, Daily    *time.Duration
	Compression             *Compression
	SpoolLimit              *int64
	Tracking                *bool
}

// Bandwidth limits what the whole appliance sends while Window is open.
type Bandwidth struct {
	Window Window
	// Limit is in bytes per second.
	Limit int64
}

// Resync says when comparisons run and when a disk counts as overflowed.
type Resync struct {
	Window Window
	// Threshold is the share of a disk's size that may be changed and unshipped before the disk is marked.
	Threshold float64
	Overflow  Overflow
	// Scrub is how often each disk's replica is compared with its checksum table, 0 for never by itself.
	Scrub time.Duration
}

// Default returns the configuration of an empty file: it lacks stores and a target.
func Default() *Config {
	return &Config{
		StateDir:      DefaultStateDir,
		ControlSocket: DefaultControlSocket,
		Target:        Target{Credentials: Credentials{Type: CredentialDefault}},
		Replication:   DefaultReplication(),
		MetricsListen: DefaultMetricsListen,
		Resync: Resync{
			Window:    Window{Days: EveryDay, From: DefaultWindowFrom, To: DefaultWindowTo},
			Threshold: DefaultThreshold,
			Overflow:  DefaultOverflow,
		},
	}
}

// DefaultReplication returns the defaults of the replication section.
func DefaultReplication() Replication {
	return Replication{
		Interval:      DefaultInterval,
		ApplyInterval: DefaultApplyInterval,
		Points:        RecoveryPoints{Dense: DefaultDense, Hourly: DefaultHourly, Daily: DefaultDaily},
		Compression:   DefaultCompression,
		Tracking:      true,
	}
}

// EffectiveReplication returns the replication settings of the VM of that name: the section's, with the VM's own keys over
// them. A VM that the config does not name has the section's.
func (c *Config) EffectiveReplication(vm string) Replication {
	for _, s := range c.Stores {
		i := slices.IndexFunc(s.VMs, func(v VM) bool { return v.Name == vm })
		if i >= 0 {
			return s.VMs[i].Overrides.Over(c.Replication)
		}
	}
	return c.Replication
}

// Over returns r with every key that o sets replaced.
func (o Overrides) Over(r Replication) Replication {
	set(&r.Interval, o.Interval)
	set(&r.ApplyInterval, o.ApplyInterval)
	set(&r.Points.Dense, o.Dense)
	set(&r.Points.Hourly, o.Hourly)
	set(&r.Points.Daily, o.Daily)
	set(&r.Compression, o.Compression)
	set(&r.SpoolLimit, o.SpoolLimit)
	set(&r.Tracking, o.Tracking)
	return r
}

func set[T any](dst, v *T) {
	if v != nil {
		*dst = *v
	}
}

// BandwidthAt returns the limit in force at t in bytes per second: the lowest of the open windows, 0 for no limit.
func (c *Config) BandwidthAt(t time.Time) int64 {
	var limit int64
	for _, b := range c.Bandwidth {
		if b.Window.Contains(t) && (limit == 0 || b.Limit < limit) {
			limit = b.Limit
		}
	}
	return limit
}
