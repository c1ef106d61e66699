package broker

import "errors"

// The errors of the broker. Every error that crosses its edge wraps exactly
// one of them; broker/rpc maps them to gRPC codes, cmd/vfbroker to exit codes.
var (
	ErrNoCapacity      = errors.New("no capacity")
	ErrNotIsolated     = errors.New("not isolated")
	ErrNotFound        = errors.New("not found")
	ErrConflict        = errors.New("conflict")
	ErrGuestNotReady   = errors.New("guest not ready")
	ErrGuestRefused    = errors.New("guest refused unplug")
	ErrQuarantined     = errors.New("quarantined")
	ErrUnsupported     = errors.New("unsupported")
	ErrUnauthenticated = errors.New("unauthenticated")
	ErrDenied          = errors.New("denied")
	ErrInvalid         = errors.New("invalid argument")
	ErrUnavailable     = errors.New("unavailable") // the journal, the kernel or a monitor cannot serve now; nothing was granted
)
