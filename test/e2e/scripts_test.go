//go:build !lab

package e2e

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts of testdata need no hardware.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, params(t, "testdata"))
}
