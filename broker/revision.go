package broker

import "sync"

// revisedMutex is a mutex that counts how often it was taken by somebody who
// may change what it guards. Whoever only reads takes it by look; to forget that costs
// others a look too many, and never an old answer.
type revisedMutex struct {
	sync.Mutex
	revision uint64
}

// Lock takes the mutex for a change.
func (m *revisedMutex) Lock() {
	m.Mutex.Lock()
	m.revision++
}

// look takes the mutex for reading only.
func (m *revisedMutex) look() { m.Mutex.Lock() }

// Revision is another number whenever Inventory might give another answer. What
// was listed after it was read is good as long as it stays the same.
func (b *Broker) Revision() uint64 {
	b.mu.look()
	defer b.mu.Unlock()
	return b.mu.revision
}
