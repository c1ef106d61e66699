package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"vfbroker/broker"
)

// errUnfit says that doctor found something that fails; its report says what.
var errUnfit = errors.New("this host is not fit")

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format+", see vfbroker --help", args...)}
}

// exits maps errors to exit codes, and is printed by --help.
var exits = []struct {
	code    int
	err     error // nil: 0 and 1
	meaning string
}{
	{0, nil, "done"},
	{1, nil, "failed for another reason; or doctor found something that fails"},
	{2, nil, "wrong command line"},
	{3, broker.ErrNoCapacity, "no capacity: no free VF fits the request"},
	{4, broker.ErrNotIsolated, "not isolated: nothing shows that the function would be kept apart"},
	{5, broker.ErrNotFound, "not found: no such PF, VF, guest or lease"},
	{6, broker.ErrConflict, "conflict: stale generation, reused request id, VFs in use, or a lease that has ended"},
	{7, broker.ErrGuestNotReady, "guest not ready: its monitor does not answer, or it is stopped"},
	{8, broker.ErrGuestRefused, "guest refused unplug"},
	{9, broker.ErrQuarantined, "quarantined: the function could not be cleared"},
	{10, broker.ErrUnsupported, "unsupported by this host, driver or daemon"},
	{11, broker.ErrUnauthenticated, "unauthenticated"},
	{12, broker.ErrDenied, "denied: not yours, not on the allow-list, or no permission on the socket"},
	{13, broker.ErrInvalid, "invalid argument; or the audit log is not chained"},
	{14, broker.ErrUnavailable, "unavailable: no daemon, or it cannot serve now; nothing was granted"},
	{15, context.DeadlineExceeded, "no answer within --timeout; the daemon goes on"},
	{130, context.Canceled, "interrupted; the daemon goes on"},
}

// exitCode is the exit code of an error.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if errors.As(err, new(usageError)) {
		return 2
	}
	for _, e := range exits {
		if e.err != nil && errors.Is(err, e.err) {
			return e.code
		}
	}
	return 1
}

// exitHelp is the table in --help.
func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for _, e := range exits {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.meaning)
	}
	return strings.TrimRight(b.String(), "\n")
}

// oneLine joins an error's lines and keeps control characters off the terminal.
func oneLine(s string) string {
	s = strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
