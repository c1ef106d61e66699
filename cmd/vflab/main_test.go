package main

import (
	"errors"
	"fmt"
	"testing"

	"vfbroker/test/lab"
)

func TestParseMiB(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"3G": 3072, "2048M": 2048, "512": 512, "1g": 1024} {
		if got, err := parseMiB(text); err != nil || got != want {
			t.Errorf("%s: %d MiB, error %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "G", "-1G", "1T", "1GG", "1.5G", "0", "99999999G", "3 G"} {
		if got, err := parseMiB(text); err == nil {
			t.Errorf("%q was read as %d MiB", text, got)
		}
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	for want, err := range map[int]error{
		exitTimeout: fmt.Errorf("x: %w", lab.ErrTimeout),
		exitMachine: &lab.MachineError{Reason: "x"},
	} {
		if got := exitStatus(err); got != want {
			t.Errorf("%v: exit status %d, want %d", err, got, want)
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no command":      {"run"},
		"unknown flag":    {"run", "--colour", "--", "true"},
		"memory":          {"run", "--memory", "much", "--", "true"},
		"kernel":          {"run", "--kernel", "5.10", "--", "true"},
		"clock":           {"run", "--clock", "sun", "--", "true"},
		"unknown command": {"ship"},
		"image argument":  {"image", "x"},
	} {
		if _, err := run(t.Context(), args); err == nil {
			t.Errorf("%s: no error", name)
		} else if errors.Is(err, lab.ErrNoImage) {
			t.Errorf("%s: %v before the command line was checked", name, err)
		}
	}
}
