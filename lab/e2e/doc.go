// Package e2e holds the end-to-end tests: a real cairnd process, real libvirt, real QEMU guests, the REST API.
//
// It has no code of its own to import. Its invariant: nothing between the API and the guest's disk is faked, and
// every fault that a test injects is seen to have happened. The tests run with CAIRN_LAB=1 and skip otherwise.
package e2e
