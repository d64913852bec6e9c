// Package lifecycle says which states a VM can be in, what moves it from one to
// another, and which command is refused where (BEHAVIOUR §States). The machine is
// one table, table.go; its drawing in README.md is generated from it, and a test
// compares the two.
//
// Two kinds of events move a VM. Commands are asked for by an operator: the table
// refuses them or lets them through. Seen events are what the appliance finds when
// it looks: it sees states, not events, and not every state on the way, so a move
// that it sees must be a path of seen events.
//
// Life keeps where one VM is: what a command decided is on stable storage before it
// is answered, what was seen soon after. A crash loses at most what was seen last,
// and the next look sees it again.
package lifecycle
