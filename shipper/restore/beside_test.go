package restore

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

func TestBeside(t *testing.T) {
	if got := beside("/out/os.vhd", PartialSuffix); got != "/out/os.vhd.partial" {
		t.Error(got)
	}
	seen := map[string]bool{}
	for _, name := range []string{strings.Repeat("x", 251) + ".vhd", strings.Repeat("x", 252) + ".vh", strings.Repeat("x", 250) + "y.vhd", strings.Repeat("ж", 125) + ".vhd"} {
		for _, suffix := range []string{PartialSuffix, CursorSuffix} {
			got := beside("/out/"+name, suffix)
			if base := filepath.Base(got); len(base)+len(durable.TempSuffix) > maxFileName || filepath.Dir(got) != "/out" || !strings.HasSuffix(got, suffix) || seen[got] {
				t.Errorf("%s: %s, %d bytes", name, got, len(base))
			}
			seen[got] = true
		}
	}
}
