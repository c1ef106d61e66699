package hvsuite_test

import (
	"os"
	"testing"

	"vfbroker/test/hvsuite"
	"vfbroker/test/hvsuite/qmpfake"
)

func TestMain(m *testing.M) {
	qmpfake.Main()
	os.Exit(m.Run())
}

func TestKVMScripted(t *testing.T) {
	hvsuite.Run(t, func(t *testing.T) *hvsuite.Fixture {
		return hvsuite.NewScripted(t, qmpfake.Config{Ports: 2, UID: hvsuite.Unprivileged()}).Fixture()
	})
}
