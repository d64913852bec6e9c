// Package azurite runs Azurite, the emulator of Azure's blob service, for tests, the demo and the acceptance
// harness. It serves blobs only, on a free port of 127.0.0.1, and ends with the program that started it.
//
// What Azurite does not tell about the real service: it loses acknowledged writes when it is killed (SIGTERM saves),
// accepts puts over 4 MiB and puts that straddle the end of a page blob, answers Get Page Ranges unpaged, and has
// snapshot times of milliseconds. shipper/target/targettest checks the contract; limits and faults are the fake's part.
//
// It depends on no testing package: errors come back as errors. ErrMissing says what to install; a test skips on it.
package azurite
