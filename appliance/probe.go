package appliance

import (
	"context"
	"errors"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// probeName is a blob that is never there: to be told so is to be answered.
const probeName = "vhdrelay-probe"

// answers asks the target for something small, for every VM that waits for it.
func (a *Appliance) answers(ctx context.Context) bool {
	t, err := a.openTarget(ctx)
	if err == nil {
		_, err = t.Get(ctx, probeName)
	}
	return err == nil || errors.Is(err, target.ErrNotFound)
}
