package config

import "maps"

// The functions here say which keys each section has. They are the schema.

func (r *reader) config(v value, c *Config) {
	r.mapping(v, fields{
		"state_dir":      into(r, &c.StateDir, absolute),
		"control_socket": into(r, &c.ControlSocket, absolute),
		"stores":         r.stores(&c.Stores),
		"target":         func(v value) { r.target(v, &c.Target) },
		"replication":    func(v value) { r.replication(v, &c.Replication) },
		"bandwidth":      r.bandwidth(&c.Bandwidth),
		"metrics_listen": into(r, &c.MetricsListen, text),
		"resync":         func(v value) { r.resync(v, &c.Resync) },
	})
}

// collect decodes a list of mappings into a slice.
func collect[T any](r *reader, dst *[]T, decode func(value, *T)) setter {
	return r.list(func(i int) setter {
		*dst = append(*dst, *new(T))
		return func(v value) { decode(v, &(*dst)[i]) }
	})
}

// texts decodes a list of strings.
func texts(r *reader, dst *[]string) setter {
	return collect(r, dst, func(v value, s *string) { into(r, s, text)(v) })
}

func (r *reader) stores(dst *[]Store) setter {
	return collect(r, dst, func(v value, s *Store) {
		r.mapping(v, fields{
			"name":   into(r, &s.Name, text),
			"source": into(r, &s.Source, absolute),
			"mount":  into(r, &s.Mount, absolute),
			"vms":    collect(r, &s.VMs, r.vm),
		})
	})
}

func (r *reader) vm(v value, vm *VM) {
	known := fields{
		"name":    into(r, &vm.Name, text),
		"disks":   texts(r, &vm.Disks),
		"exclude": texts(r, &vm.Exclude),
	}
	maps.Copy(known, r.overrides(&vm.Overrides))
	r.mapping(v, known)
}

func (r *reader) target(v value, t *Target) {
	r.mapping(v, fields{
		"url":     into(r, &t.URL, text),
		"ca_file": into(r, &t.CAFile, emptyOr(absolute)),
		"credentials": func(v value) {
			r.mapping(v, fields{
				"type": into(r, &t.Credentials.Type,
					oneOf(CredentialDefault, CredentialConnectionString, CredentialSharedKey, CredentialSAS)),
				"file": into(r, &t.Credentials.File, emptyOr(absolute)),
			})
		},
	})
}

// replication is decoded as overrides of the defaults, so that a VM's keys and the section's cannot drift apart.
func (r *reader) replication(v value, dst *Replication) {
	var o Overrides
	r.mapping(v, r.overrides(&o))
	*dst = o.Over(*dst)
}

func (r *reader) overrides(o *Overrides) fields {
	return fields{
		"interval":       optional(r, &o.Interval, duration(MinInterval, MaxInterval)),
		"apply_interval": optional(r, &o.ApplyInterval, duration(MinApplyInterval, MaxApplyInterval)),
		"recovery_points": func(v value) {
			r.mapping(v, fields{
				"dense":  optional(r, &o.Dense, duration(0, MaxRetention)),
				"hourly": optional(r, &o.Hourly, duration(0, MaxRetention)),
				"daily":  optional(r, &o.Daily, duration(0, MaxRetention)),
			})
		},
		"compression": optional(r, &o.Compression, oneOf(CompressionOff, CompressionFastest, CompressionDefault,
			CompressionBetter, CompressionBest)),
		"spool_limit": optional(r, &o.SpoolLimit, size(MinSpoolLimit, MaxSpoolLimit, true)),
		"tracking":    optional(r, &o.Tracking, switched),
	}
}

func (r *reader) bandwidth(dst *[]Bandwidth) setter {
	return collect(r, dst, func(v value, b *Bandwidth) {
		b.Window.Days = EveryDay
		known := r.window(&b.Window)
		known["limit"] = into(r, &b.Limit, size(MinBandwidthLimit, MaxBandwidthLimit, false))
		r.mapping(v, known)
		if _, given := r.at[v.key+".limit"]; !given {
			r.failAt(v.key, "needs a limit, in bytes per second")
		}
	})
}

func (r *reader) window(w *Window) fields {
	return fields{"days": r.days(&w.Days), "from": into(r, &w.From, timeOfDay), "to": into(r, &w.To, timeOfDay)}
}

func (r *reader) days(dst *Days) setter {
	return func(v value) {
		var list []Days
		collect(r, &list, func(v value, d *Days) { into(r, d, weekday)(v) })(v)
		var union Days
		for _, d := range list {
			union |= d
		}
		if len(list) == 0 {
			r.failAt(v.key, "names no day; leave it out for every day")
			return
		}
		*dst = union
	}
}

func (r *reader) resync(v value, rs *Resync) {
	r.mapping(v, fields{
		"window":    func(v value) { r.mapping(v, r.window(&rs.Window)) },
		"threshold": into(r, &rs.Threshold, fraction(MinThreshold, MaxThreshold)),
		"overflow":  into(r, &rs.Overflow, oneOf(OverflowNow, OverflowWindow)),
		"scrub":     into(r, &rs.Scrub, durationOrZero(MinScrub, MaxScrub)),
	})
}
