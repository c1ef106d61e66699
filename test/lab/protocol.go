package lab

import (
	"fmt"
	"strconv"
	"strings"
)

// eventKind is what the machine tells over its control port; one line each.
type eventKind int

const (
	eventReady eventKind = iota // "ready RELEASE BOOT": the command starts now
	eventExit                   // "exit STATUS": it ended
	eventEnd                    // "end": its output and files are delivered
	eventFail                   // "fail REASON": the machine cannot run it
)

// event is one line of the control port. Only the fields of its kind are set.
type event struct {
	kind    eventKind
	release string // of the running kernel, as in uname -r
	boot    int    // 1 for the first
	status  int    // as a shell reports it: 128 + signal for a killed command
	reason  string
}

const maxEventLine = 4096

// parseEvent reads a line of the control port, without its line break.
func parseEvent(line string) (event, error) {
	if len(line) > maxEventLine {
		return event{}, fmt.Errorf("read control port: line of %d bytes", len(line))
	}
	word, rest, _ := strings.Cut(line, " ")
	bad := func() (event, error) {
		return event{}, fmt.Errorf("read control port: unexpected %q", line)
	}
	switch word {
	case "ready":
		release, number, ok := strings.Cut(rest, " ")
		boot, err := decimal(number, 1<<20)
		if !ok || release == "" || err != nil || boot < 1 {
			return bad()
		}
		return event{kind: eventReady, release: release, boot: boot}, nil
	case "exit":
		status, err := decimal(rest, 255)
		if err != nil {
			return bad()
		}
		return event{kind: eventExit, status: status}, nil
	case "end":
		if line != "end" {
			return bad()
		}
		return event{kind: eventEnd}, nil
	case "fail":
		if strings.TrimSpace(rest) == "" {
			return bad()
		}
		return event{kind: eventFail, reason: rest}, nil
	}
	return bad()
}

// decimal reads digits only: no sign, no blanks.
func decimal(s string, maximum int) (int, error) {
	for _, r := range s {
		if r < '0' || r > '9' {
			return 0, fmt.Errorf("number %q: not digits only", s)
		}
	}
	n, err := strconv.Atoi(s)
	if err != nil || n > maximum {
		return 0, fmt.Errorf("number %q: not within 0 to %d", s, maximum)
	}
	return n, nil
}
