// Package health says how a VM is, why, and what to do next, as a pure function of
// facts that the appliance gathers (BEHAVIOUR §Health). It keeps nothing and asks
// nobody.
//
// Every reason has a stable code. Codes is the table of all of them; the README's
// table is generated from it, and a test makes each come and go.
package health
