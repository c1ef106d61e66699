package guestshim

import (
	"fmt"
	"strings"
	"unicode"
)

// Code is the kind of an error of the shim. It is itself an error, so that
// errors.Is(err, NotReady) works on what a Client returns.
type Code string

// The codes.
const (
	BadRequest  Code = "bad-request" // no such frame, operation or argument
	BadVersion  Code = "bad-version" // another version of the protocol
	Unsupported Code = "unsupported" // the shim was not started for it, or the guest cannot
	NotFound    Code = "not-found"   // no device has the identity
	NotReady    Code = "not-ready"   // the wait ended before the device was ready
	Busy        Code = "busy"        // a limit of the shim: ask again later
	Canceled    Code = "canceled"
	Internal    Code = "internal"
)

func (c Code) Error() string { return string(c) }

// Error is an error that the shim reported. Its text is the guest's: it is cut
// and cleaned before it is shown.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s (%s)", printable(e.Text, 512), printable(string(e.Code), 32))
}

// Unwrap makes the code match.
func (e *Error) Unwrap() error { return e.Code }

func errorf(code Code, format string, args ...any) *Error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// printable is s without control characters and not longer than limit bytes or so.
func printable(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
