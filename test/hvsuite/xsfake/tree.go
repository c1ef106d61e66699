package xsfake

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// tree is the nodes by their absolute paths. The parents of each are in it.
type tree map[string]string

// write gives a node a value. It returns the nodes that changed, children's lists included.
func (t tree) write(at, value string) []string {
	changed := append(t.mkdir(at), at)
	t[at] = value
	return changed
}

// mkdir makes a node and its parents, if it is not there.
func (t tree) mkdir(at string) (changed []string) {
	for {
		if _, there := t[at]; there {
			if len(changed) > 0 {
				changed = append(changed, at)
			}
			return changed
		}
		t[at] = ""
		changed = append(changed, at)
		at = path.Dir(at)
	}
}

// remove removes a node and all below it, and returns those that are gone.
func (t tree) remove(at string) (gone []string) {
	for p := range t {
		if within(p, at) {
			gone = append(gone, p)
			delete(t, p)
		}
	}
	slices.Sort(gone)
	return gone
}

// children are the names below a node. Their order means nothing, so it is not the usual one.
func (t tree) children(at string) (names []string) {
	for p := range t {
		if p != "/" && path.Dir(p) == at {
			names = append(names, path.Base(p))
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names
}

func (t tree) clone() tree { return maps.Clone(t) }

// within says whether p is at or below at.
func within(p, at string) bool {
	return p == at || at == "/" || strings.HasPrefix(p, at+"/")
}

var pathChars = regexp.MustCompile(`^[A-Za-z0-9/_@-]+$`)

// canonical is a path as xenstored keeps it (canonicalize in its core.c);
// false: it is refused. Only watches may name what is special.
func canonical(base, p string, special bool) (string, bool) {
	if !pathChars.MatchString(p) || p[0] == '@' && !special {
		return "", false
	}
	if p[0] != '/' && p[0] != '@' {
		p = base + "/" + p
	}
	ok := p == "/" || !strings.HasSuffix(p, "/") && !strings.Contains(p, "//") && len(p) <= 3072
	return p, ok
}
