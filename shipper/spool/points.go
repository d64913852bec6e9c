package spool

// The points at which Options.Hook is called, each named after the gap it sits in. A crash at any of them leaves one of the states
// in shipper/README.md.
const (
	PointDirectoryMade    = "after epoch directory before segments"
	PointSegmentsSynced   = "after segment sync before directory sync"
	PointDirectorySynced  = "after directory sync before manifest"
	PointManifestDurable  = "after manifest before answer"
	PointManifestFailed   = "after manifest failure before unlink"
	PointUpdated          = "after manifest update before answer"
	PointManifestUnlinked = "after manifest unlink before segment removal"
	PointSegmentsRemoved  = "after segment removal before directory removal"
	PointIntentDurable    = "after give-up intent before answer"
	PointGivenUp          = "after give-up before intent removal"
)

// Points lists them all.
func Points() []string {
	return []string{
		PointDirectoryMade, PointSegmentsSynced, PointDirectorySynced, PointManifestDurable, PointManifestFailed,
		PointUpdated, PointManifestUnlinked, PointSegmentsRemoved, PointIntentDurable, PointGivenUp,
	}
}
