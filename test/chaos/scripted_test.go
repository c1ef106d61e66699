//go:build lab

package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vfbroker/test/hvsuite/qmpfake"
)

const (
	scriptedGuests = 3
	scriptedPorts  = 4 // each; more than there are VFs altogether, so that a VF is what is scarce
	nobody         = 65534
)

// scripted are guests with a scripted QEMU, whose processes open functions by VFIO.
type scripted struct {
	guests map[string]*qmpfake.Guest
}

func (c *chaos) scripted(t *testing.T) *scripted {
	s := &scripted{guests: map[string]*qmpfake.Guest{}}
	for i := range scriptedGuests {
		name := fmt.Sprintf("scripted%d", i)
		cfg := qmpfake.Config{Ports: scriptedPorts, VFIO: true}
		if i > 0 {
			cfg.UID = nobody // it can open only what its user was given
		}
		g, err := qmpfake.Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Stop)
		g.SetAnswer(qmpfake.LetGo)
		s.guests[name] = g
		text := fmt.Sprintf("target: kvm\nqmp: %s\n", g.Path())
		if err := os.WriteFile(filepath.Join(c.daemon.GuestsDir(), name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *scripted) names() (names []string) {
	for i := range scriptedGuests {
		names = append(names, fmt.Sprintf("scripted%d", i))
	}
	return names
}

// who says which process each guest is.
func (s *scripted) who() guests {
	who := guests{}
	for name, g := range s.guests {
		who[name] = g.PID()
	}
	return who
}
