package lifecycle

import "slices"

// State is where a VM stands. The names are Hyper-V Replica's, stable, and part of
// the operator's contract.
type State string

// The states of a VM.
const (
	Disabled                  State = "Disabled"
	Ready                     State = "ReadyForInitialReplication"
	Waiting                   State = "WaitingForInitialReplication"
	Initial                   State = "InitialReplication"
	Replicating               State = "Replicating"
	Paused                    State = "Paused"
	ResynchronizationRequired State = "ResynchronizationRequired"
	Resynchronizing           State = "Resynchronizing"
	ResynchronizationPaused   State = "ResynchronizationPaused"
	Error                     State = "Error"
)

// States are all states in the order of a VM's life, with what each means.
var States = []struct {
	State   State
	Meaning string
}{
	{Disabled, "not protected, or without a disk that could be"},
	{Ready, "protected; the target has not taken it in yet"},
	{Waiting, "the target knows it, no disk has begun"},
	{Initial, "disks are being copied, changes tracked meanwhile"},
	{Replicating, "a point at every interval in which something changed"},
	{Paused, "by an operator: tracking and sealing go on, nothing is sent"},
	{ResynchronizationRequired, "points pause: the spool is at its quota, half of a disk changed unshipped, or a disk waits for its comparison"},
	{Resynchronizing, "it is compared or catches up; points resume by themselves"},
	{ResynchronizationPaused, "by an operator; the position is kept"},
	{Error, "an operator must act: the reason says how"},
}

// Event moves a VM from one state to another.
type Event string

// The commands.
const (
	Protect   Event = "protect"
	Unprotect Event = "unprotect"
	Pause     Event = "pause"
	Resume    Event = "resume"
	Adopt     Event = "adopt"
	Sync      Event = "sync"
	Resync    Event = "resync"
)

// What is seen.
const (
	DisksFound    Event = "disks found"
	DisksGone     Event = "disks gone"
	TakenIn       Event = "taken in"
	InitialBegan  Event = "initial replication began"
	InitialEnded  Event = "initial replication ended"
	DiskAdded     Event = "disk added"
	Marked        Event = "marked"
	ResyncBegan   Event = "resynchronization began"
	ResyncPaused  Event = "resynchronization paused"
	ResyncResumed Event = "resynchronization resumed"
	ResyncEnded   Event = "resynchronization ended"
	Failed        Event = "failed"
	Mended        Event = "mended"
)

// Commands are the events that an operator asks for.
var Commands = []Event{Protect, Unprotect, Pause, Resume, Adopt, Sync, Resync}

// row is one line of the table: the event leads from any of the first states to any
// of the second; where those are several, what is seen decides. Stays says that the
// state is the same afterwards.
type row struct {
	event Event
	from  []State
	to    []State
	stays bool
}

var (
	begun   = []State{Initial, Replicating, ResynchronizationRequired, Resynchronizing, ResynchronizationPaused}
	working = append([]State{Ready, Waiting}, begun...)
	alive   = append([]State{Error}, working...)
	resyncs = []State{ResynchronizationRequired, Resynchronizing, ResynchronizationPaused}
)

// table is the machine. A state that is to come (failover, failback) is a constant,
// a line in States, and rows here.
var table = []row{
	{event: Protect, from: []State{Disabled}, to: []State{Ready}},
	{event: Unprotect, from: all(), to: []State{Disabled}},
	{event: Pause, from: alive, to: []State{Paused}},
	{event: Resume, from: []State{Paused, Error}, to: working},
	{event: Adopt, from: []State{Disabled, Ready, Error}, to: working},
	{event: Sync, from: alive, stays: true},
	{event: Resync, from: append([]State{Paused, Error}, begun...), stays: true},

	{event: DisksFound, from: []State{Disabled}, to: []State{Ready}},
	{event: DisksGone, from: alive, to: []State{Disabled}},
	{event: TakenIn, from: []State{Ready}, to: []State{Waiting}},
	{event: InitialBegan, from: []State{Waiting}, to: []State{Initial}},
	{event: InitialEnded, from: []State{Initial}, to: []State{Replicating}},
	{event: DiskAdded, from: begun[1:], to: []State{Initial}},
	{event: Marked, from: []State{Replicating, Initial, Resynchronizing}, to: []State{ResynchronizationRequired}},
	{event: ResyncBegan, from: []State{ResynchronizationRequired}, to: []State{Resynchronizing}},
	{event: ResyncPaused, from: []State{Resynchronizing}, to: []State{ResynchronizationPaused}},
	{event: ResyncResumed, from: []State{ResynchronizationPaused}, to: []State{Resynchronizing}},
	{event: ResyncEnded, from: resyncs, to: []State{Replicating}},
	{event: Failed, from: working, to: []State{Error}},
	{event: Mended, from: []State{Error}, to: working},
}

func all() []State {
	var list []State
	for _, s := range States {
		list = append(list, s.State)
	}
	return list
}

// Edge is one allowed move.
type Edge struct {
	From  State
	Event Event
	To    State
}

// Edges are all allowed moves, in the order of the table.
func Edges() []Edge {
	var edges []Edge
	for _, r := range table {
		for _, from := range r.from {
			for _, to := range r.targets(from) {
				edges = append(edges, Edge{from, r.event, to})
			}
		}
	}
	return edges
}

func (r row) targets(from State) []State {
	if r.stays {
		return []State{from}
	}
	return r.to
}

// Targets are the states that an event can lead to from a state, none if it is
// refused there.
func Targets(from State, event Event) []State {
	for _, r := range table {
		if r.event == event && slices.Contains(r.from, from) {
			return r.targets(from)
		}
	}
	return nil
}

// Path is a shortest sequence of seen events from one state to another; false if
// only a command can lead there, or nothing.
func Path(from, to State) ([]Event, bool) {
	type step struct {
		at   State
		path []Event
	}
	reached := map[State]bool{from: true}
	for queue := []step{{at: from}}; len(queue) > 0; queue = queue[1:] {
		s := queue[0]
		if s.at == to {
			return s.path, true
		}
		for _, e := range Edges() {
			if e.From != s.at || reached[e.To] || slices.Contains(Commands, e.Event) {
				continue
			}
			reached[e.To] = true
			queue = append(queue, step{e.To, append(s.path[:len(s.path):len(s.path)], e.Event)})
		}
	}
	return nil, false
}
