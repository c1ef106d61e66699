package xenfake_test

import (
	"testing"

	"vfbroker/test/hvsuite"
	"vfbroker/test/hvsuite/xenfake"
)

func TestXenScripted(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{xenfake.PV, xenfake.HVM} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			hvsuite.RunVirtual(t, func(t *testing.T) *hvsuite.Fixture { return xenfake.New(t, kind).Fixture() })
		})
	}
}
