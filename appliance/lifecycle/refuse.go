package lifecycle

import "fmt"

// Refusal is a command that a state does not allow: exit code 6.
type Refusal struct {
	VM      string
	State   State
	Command Event
	WayOut  string // the next action
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("VM %s is %s: %s is refused", r.VM, r.State, r.Command)
}

// Permit returns a *Refusal if the state does not allow the command.
func Permit(vm string, s State, command Event) error {
	if len(Targets(s, command)) > 0 {
		return nil
	}
	return &Refusal{VM: vm, State: s, Command: command, WayOut: wayOut(vm, s, command)}
}

// wayOut says what leads to where the command is allowed, or why it is not needed.
func wayOut(vm string, s State, command Event) string {
	switch {
	case command == Protect:
		return "none: it is protected already; see vhdrelay status " + vm
	case command == Resume && s != Disabled:
		return "none: it is not paused; see vhdrelay status " + vm
	case command == Adopt:
		return "to begin anew: vhdrelay unprotect " + vm + ", then vhdrelay protect " + vm
	case s == Disabled:
		return "protect it first: vhdrelay protect " + vm
	case s == Paused:
		return "let it go on first: vhdrelay resume " + vm
	}
	return "wait until its initial replication has begun; see vhdrelay status " + vm
}
