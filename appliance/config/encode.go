package config

import (
	"fmt"

	"github.com/goccy/go-yaml"
)

// Marshal writes the configuration as a file that Parse reads back to the same value, with every default spelled out.
func (c *Config) Marshal() ([]byte, error) {
	return yaml.Marshal(yaml.MapSlice{
		{Key: "state_dir", Value: c.StateDir},
		{Key: "control_socket", Value: c.ControlSocket},
		{Key: "stores", Value: each(c.Stores, Store.items)},
		{Key: "target", Value: c.Target.items()},
		{Key: "replication", Value: c.Replication.overrides().items()},
		{Key: "bandwidth", Value: each(c.Bandwidth, Bandwidth.items)},
		{Key: "metrics_listen", Value: c.MetricsListen},
		{Key: "resync", Value: c.Resync.items()},
	})
}

func each[T any](list []T, items func(T) yaml.MapSlice) []yaml.MapSlice {
	out := make([]yaml.MapSlice, len(list))
	for i, v := range list {
		out[i] = items(v)
	}
	return out
}

func (s Store) items() yaml.MapSlice {
	return yaml.MapSlice{
		{Key: "name", Value: s.Name}, {Key: "source", Value: s.Source}, {Key: "mount", Value: s.Mount},
		{Key: "vms", Value: each(s.VMs, VM.items)},
	}
}

func (vm VM) items() yaml.MapSlice {
	out := yaml.MapSlice{{Key: "name", Value: vm.Name}}
	if len(vm.Disks) > 0 {
		out = append(out, yaml.MapItem{Key: "disks", Value: vm.Disks})
	}
	if len(vm.Exclude) > 0 {
		out = append(out, yaml.MapItem{Key: "exclude", Value: vm.Exclude})
	}
	return append(out, vm.Overrides.items()...)
}

func (t Target) items() yaml.MapSlice {
	return yaml.MapSlice{
		{Key: "url", Value: t.URL}, {Key: "ca_file", Value: t.CAFile},
		{Key: "credentials", Value: yaml.MapSlice{
			{Key: "type", Value: string(t.Credentials.Type)}, {Key: "file", Value: t.Credentials.File},
		}},
	}
}

func (r Replication) overrides() Overrides {
	return Overrides{
		Interval: &r.Interval, ApplyInterval: &r.ApplyInterval,
		Dense: &r.Points.Dense, Hourly: &r.Points.Hourly, Daily: &r.Points.Daily,
		Compression: &r.Compression, SpoolLimit: &r.SpoolLimit, Tracking: &r.Tracking,
	}
}

// items holds the keys that are set, in the order of the documentation.
func (o Overrides) items() yaml.MapSlice {
	var out, points yaml.MapSlice
	add(&out, "interval", o.Interval, shortDuration)
	add(&out, "apply_interval", o.ApplyInterval, shortDuration)
	add(&points, "dense", o.Dense, shortDuration)
	add(&points, "hourly", o.Hourly, shortDuration)
	add(&points, "daily", o.Daily, shortDuration)
	if len(points) > 0 {
		out = append(out, yaml.MapItem{Key: "recovery_points", Value: points})
	}
	add(&out, "compression", o.Compression, func(c Compression) string { return string(c) })
	add(&out, "spool_limit", o.SpoolLimit, shortSize)
	add(&out, "tracking", o.Tracking, func(on bool) string {
		if on {
			return "on"
		}
		return "off"
	})
	return out
}

func add[T any](out *yaml.MapSlice, key string, v *T, text func(T) string) {
	if v != nil {
		*out = append(*out, yaml.MapItem{Key: key, Value: text(*v)})
	}
}

func (w Window) items() yaml.MapSlice {
	return yaml.MapSlice{
		{Key: "days", Value: w.Days.Names()}, {Key: "from", Value: w.From.String()}, {Key: "to", Value: w.To.String()},
	}
}

func (b Bandwidth) items() yaml.MapSlice {
	return append(b.Window.items(), yaml.MapItem{Key: "limit", Value: shortSize(b.Limit)})
}

func (rs Resync) items() yaml.MapSlice {
	return yaml.MapSlice{
		{Key: "window", Value: rs.Window.items()},
		{Key: "threshold", Value: fmt.Sprintf("%g", rs.Threshold)},
		{Key: "overflow", Value: string(rs.Overflow)},
		{Key: "scrub", Value: shortDuration(rs.Scrub)},
	}
}
