package config

import (
	"fmt"
	"slices"
)

// Reload returns what is in force after next was read while c is running, and the keys whose change has to wait for a
// restart, in the order of the file. Live are replication with the VMs' own keys, bandwidth and resync; the rest is what the
// appliance opened at its start: directories, sockets, the target, and which disk belongs to which VM.
func (c *Config) Reload(next *Config) (inForce *Config, restart []string) {
	needs := func(key string, same bool) {
		if !same {
			restart = append(restart, key)
		}
	}
	needs("state_dir", c.StateDir == next.StateDir)
	needs("control_socket", c.ControlSocket == next.ControlSocket)
	merged := *c
	merged.Stores = slices.Clone(c.Stores)
	if len(c.Stores) != len(next.Stores) {
		needs("stores", false)
	} else {
		for i := range c.Stores {
			key := fmt.Sprintf("stores[%d]", i)
			if same := c.Stores[i].placedAs(next.Stores[i]); !same {
				needs(key, same)
				continue
			}
			merged.Stores[i] = next.Stores[i]
		}
	}
	needs("target", c.Target == next.Target)
	needs("metrics_listen", c.MetricsListen == next.MetricsListen)
	merged.Path, merged.Replication, merged.Bandwidth, merged.Resync = next.Path, next.Replication, next.Bandwidth, next.Resync
	return &merged, restart
}

// placedAs reports whether two stores serve the same directory at the same mount and group its disks alike; the VMs'
// keys of replication may differ.
func (s Store) placedAs(o Store) bool {
	return s.Name == o.Name && s.Source == o.Source && s.Mount == o.Mount &&
		slices.EqualFunc(s.VMs, o.VMs, func(a, b VM) bool {
			return a.Name == b.Name && slices.Equal(a.Disks, b.Disks) && slices.Equal(a.Exclude, b.Exclude)
		})
}
