package shipper

// Failpoints, named after the gap they sit in. Options.Hook is called there.
const (
	PointAfterSeal         = "after seal before capture"
	PointBeforeManifest    = "after segments before manifest"
	PointAfterManifest     = "after manifest before table"
	PointAfterTable        = "after table before end of epoch"
	PointAfterUpload       = "after upload before record"
	PointBeforeRecord      = "after record intent before record"
	PointAfterRecord       = "after record before it counts"
	PointAfterCounted      = "after record counts before release"
	PointBeforeApply       = "after apply intent before puts"
	PointAfterPuts         = "after puts before raise"
	PointBeforeSnapshot    = "after raise before snapshot"
	PointAfterSnapshot     = "after snapshot before applied"
	PointAfterBaseSnapshot = "after base snapshot before complete"
	PointAfterIntent       = "after give-up intent before forget"
	PointAfterForget       = "after forget before delete"
)

// Points lists every failpoint of the pipeline.
func Points() []string {
	return []string{
		PointAfterSeal, PointBeforeManifest, PointAfterManifest, PointAfterTable,
		PointAfterUpload, PointBeforeRecord, PointAfterRecord, PointAfterCounted,
		PointBeforeApply, PointAfterPuts, PointBeforeSnapshot, PointAfterSnapshot, PointAfterBaseSnapshot,
		PointAfterIntent, PointAfterForget,
	}
}
