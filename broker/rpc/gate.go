package rpc

import "sync"

// gate bounds how many of something are in use at once: by all users, and by
// each of them. Of the total, one user's share is kept for root, so that an administrator gets
// in whatever other users do.
type gate struct {
	total, each int

	mu    sync.Mutex
	used  int
	byUID map[int]int
}

func newGate(total, each int) *gate {
	return &gate{total: total, each: each, byUID: map[int]int{}}
}

// enter says whether the user may take one more. leave gives it back.
func (g *gate) enter(uid int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	limit := g.total
	if uid != 0 {
		limit -= g.each
	}
	if g.used >= limit || g.byUID[uid] >= g.each {
		return false
	}
	g.used++
	g.byUID[uid]++
	return true
}

func (g *gate) leave(uid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used--
	if g.byUID[uid]--; g.byUID[uid] == 0 {
		delete(g.byUID, uid)
	}
}
