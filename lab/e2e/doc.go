// Package e2e holds the end-to-end tests: real cairnd, cairn and cairn-mover processes and the REST API, against real libvirt with real
// QEMU guests, or against a simulated oVirt (lab/ovirtsim) with real images, to which simulated guests write.
//
// It has no code of its own to import. Its invariant: nothing between the API and the disk is faked but oVirt's engine and
// hosts themselves, and every fault that a test injects is seen to have happened. The tests run with CAIRN_LAB=1 and skip otherwise.
package e2e
