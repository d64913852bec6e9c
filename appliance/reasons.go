package appliance

import (
	"fmt"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// warning is a reason that a store has by itself, beside those of package health. Its
// code is in health.Codes.
func warning(code, action, format string, args ...any) control.Reason {
	return control.Reason{Code: code, Severity: control.SeverityWarning, Message: fmt.Sprintf(format, args...), Action: action}
}

func critical(code, action, format string, args ...any) control.Reason {
	r := warning(code, action, format, args...)
	r.Severity = control.SeverityCritical
	return r
}
