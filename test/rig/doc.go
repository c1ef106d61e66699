// Package rig is what tests on the emulated host are set up with: the real
// daemon, a guest's shell, and a look at the host without the broker's own code.
package rig
