// Package fake is a strict in-memory target: Azure page blobs and block blobs as
// AZURE.md describes them, with the limits Azurite does not enforce, and with
// faults. It is for tests of everything above the contract.
//
// Strict means: what the service might refuse, it refuses. Puts are checked
// against their CRC-64, sizes, alignment and the end of the blob; leases follow
// the whole table of AZURE.md 1.4; conditions are judged when a request takes
// effect, which for a late one is when it lands.
//
// Faults come from one hook that sees every operation (SetHook), or from FailAt,
// which fails the k-th. To look at the content without counting operations or
// meeting faults, look at a Clone.
package fake
