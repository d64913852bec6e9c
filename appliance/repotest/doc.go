// Package repotest holds no code, only the rules of the repository as tests: who may import what, that everything is
// documented, what is banned and what to use instead, and the house numbers of functions and files.
package repotest
