// Package config reads the appliance's YAML file, strictly: an unknown key, a duplicate, a value out of its range or of the
// wrong kind is an error with file, line and column, and all of them are reported at once.
//
// The syntax tree comes from goccy/go-yaml; the walk over it is our own, for two reasons: a decoder into structs stops at
// its first complaint, and it knows the position of its own errors only, while most of what an operator gets wrong (a
// mount inside its source, http to another host) is found after decoding and deserves a line number too.
//
// The package opens no file but the one it is asked to read: whether a source directory or a credential exists is a question
// for preflight and for the moment of use.
package config
