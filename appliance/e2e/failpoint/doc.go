// Package failpoint ends a process where it hurts. It has the list of all failpoints of the data path, and the orders that a
// harness gives to a child: die at the so manieth passage of one, stay there, or come late.
//
// The child is not the product: Command mortal (appliance/e2e/mortal) is the same appliance with Hook set. It takes orders, JSON
// values one after the other, from file descriptor 3, and says on 4 which points it came to.
package failpoint
