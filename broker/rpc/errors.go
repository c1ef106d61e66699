package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vfbroker/broker"
)

// Domain is the domain of the google.rpc.ErrorInfo that every error carries.
const Domain = "vfbroker"

// maxMessage is how many bytes of an error's text are sent: the status
// travels twice in a trailer whose size peers limit.
const maxMessage = 2 << 10

// reasons maps the broker's errors to gRPC codes and ErrorInfo reasons. Clients branch on
// the reason; several errors share a code.
var reasons = []struct {
	sentinel error
	code     codes.Code
	reason   string
}{
	{broker.ErrNoCapacity, codes.ResourceExhausted, "NO_CAPACITY"},
	{broker.ErrNotIsolated, codes.FailedPrecondition, "NOT_ISOLATED"},
	{broker.ErrNotFound, codes.NotFound, "NOT_FOUND"},
	{broker.ErrConflict, codes.Aborted, "CONFLICT"},
	{broker.ErrGuestNotReady, codes.FailedPrecondition, "GUEST_NOT_READY"},
	{broker.ErrGuestRefused, codes.FailedPrecondition, "GUEST_REFUSED_UNPLUG"},
	{broker.ErrQuarantined, codes.FailedPrecondition, "QUARANTINED"},
	{broker.ErrUnsupported, codes.Unimplemented, "UNSUPPORTED"},
	{broker.ErrUnauthenticated, codes.Unauthenticated, "UNAUTHENTICATED"},
	{broker.ErrDenied, codes.PermissionDenied, "DENIED"},
	{broker.ErrInvalid, codes.InvalidArgument, "INVALID_ARGUMENT"},
	{broker.ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED"},
	{context.Canceled, codes.Canceled, "CANCELED"},
}

// internalReason is the reason of an error that wraps none of the broker's.
const internalReason = "INTERNAL"

// classify returns an error's code and reason. What wraps none of the
// broker's errors is a defect of ours.
func classify(err error) (codes.Code, string) {
	for _, r := range reasons {
		if errors.Is(err, r.sentinel) {
			return r.code, r.reason
		}
	}
	if st, ok := status.FromError(err); ok {
		return st.Code(), "TRANSPORT" // of grpc's own services
	}
	return codes.Internal, internalReason
}

func reasonOf(err error) string {
	_, reason := classify(err)
	return reason
}

// toStatus makes the gRPC error of an error of the broker.
func toStatus(err error) error {
	code, reason := classify(err)
	if _, ok := status.FromError(err); ok {
		return err
	}
	message := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	st := status.New(code, message)
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: Domain}); err == nil {
		st = detailed
	}
	return st.Err()
}

// Cause is the broker's error in the answer to a call, for clients in Go: it
// keeps the text and wraps the same sentinel again, and so do gRPC's own errors of the
// same meaning (no connection is ErrUnavailable and ErrNoAnswer). An error that is no gRPC status comes back as it is.
func Cause(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	for _, detail := range st.Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if !ok || info.Domain != Domain {
			continue
		}
		for _, r := range reasons {
			if r.reason == info.Reason {
				return &remoteError{st.Message(), r.sentinel}
			}
		}
	}
	switch st.Code() { // said by gRPC itself
	case codes.Unavailable:
		return fmt.Errorf("%w: %w: %s", broker.ErrUnavailable, ErrNoAnswer, st.Message())
	case codes.DeadlineExceeded:
		return &remoteError{st.Message(), context.DeadlineExceeded}
	case codes.Canceled:
		return &remoteError{st.Message(), context.Canceled}
	case codes.Unimplemented: // the daemon is older than the client
		return &remoteError{st.Message(), broker.ErrUnsupported}
	case codes.ResourceExhausted: // a message over the limit
		return &remoteError{st.Message(), broker.ErrInvalid}
	}
	return &remoteError{st.Message(), nil}
}

// ErrNoAnswer says that the connection to the broker could not be made or broke:
// whether what was asked for goes on is not known.
var ErrNoAnswer = errors.New("no answer from the daemon")

// remoteError is an error that the broker sent.
type remoteError struct {
	message  string
	sentinel error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.sentinel }
