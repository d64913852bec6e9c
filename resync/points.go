package resync

// Failpoints, named after the gap they sit in. Options.Hook is called there.
const (
	PointBeforeMark     = "resync: after a stride was judged, before what differs is marked"
	PointBeforeCompared = "resync: after what differs was marked, before the stride counts as compared"
	PointAfterCompared  = "resync: after a stride counts as compared"
	PointBeforeForget   = "resync: after damage was found, before its entries are unknown"
	PointAfterForget    = "resync: after entries are unknown, before the progress is noted"
	PointBeforeMatched  = "resync: after a matched table was synced, before the progress is noted"
)

// Points lists them all.
func Points() []string {
	return []string{PointBeforeMark, PointBeforeCompared, PointAfterCompared, PointBeforeForget, PointAfterForget, PointBeforeMatched}
}

// at comes to a failpoint.
func (o Options) at(point string) {
	if o.Hook != nil {
		o.Hook(point)
	}
}
