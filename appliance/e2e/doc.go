// Package e2e tests the appliance from outside, as an operator and a guest see it: the binary, its command line, the
// mount, the files. Its tests are small forms of the stages that `make acceptance` runs (package stage).
package e2e
