package fake

import (
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/targettest"
)

func TestConformance(t *testing.T) {
	targettest.Run(t, func(*testing.T) target.Target { return New(Options{}) })
}
