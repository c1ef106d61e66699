package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

// edge is what every call passes: admission, identity, limits, recovery, the
// error's code, one line in the log.
type edge struct {
	log    *slog.Logger
	onCall func(method, result string)
	calls  *gate
}

// admit bounds the calls at a time before anything of them is read.
func (e *edge) admit(ctx context.Context, _ *tap.Info) (context.Context, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if !e.calls.enter(caller.UID) {
		return nil, toStatus(fmt.Errorf("admit call: more than %d calls of one user or %d in all at a time, try again when some have ended: %w",
			maxCallsOfUser, maxCalls-maxCallsOfUser, broker.ErrUnavailable))
	}
	context.AfterFunc(ctx, func() { e.calls.leave(caller.UID) })
	return ctx, nil
}

// unary handles one call.
func (e *edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	reply, err := e.safely(ctx, req, handler)
	if strings.HasPrefix(info.FullMethod, "/"+pb.Broker_ServiceDesc.ServiceName+"/") {
		e.report(ctx, path.Base(info.FullMethod), err)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return reply, nil
}

// safely checks the request and turns a panic of the handler into an error.
func (e *edge) safely(ctx context.Context, req any, handler grpc.UnaryHandler) (reply any, err error) {
	defer e.recovered(&err)
	if _, err := callerOf(ctx); err != nil {
		return nil, err
	}
	if m, ok := req.(proto.Message); ok {
		if err := check(m); err != nil {
			return nil, err
		}
	}
	return handler(ctx, req)
}

// stream handles the health service's Watch, the only stream there is.
func (e *edge) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer e.recovered(&err)
	return handler(srv, ss)
}

// recovered keeps a defect in one call from ending the daemon, and with it everybody's.
func (e *edge) recovered(err *error) {
	if p := recover(); p != nil {
		e.log.Error("call panicked", "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("answer the call: panic, see the daemon's log: %v", p)
	}
}

// report logs a call once and counts it.
func (e *edge) report(ctx context.Context, method string, err error) {
	result := "ok"
	if err != nil {
		result = reasonOf(err)
	}
	e.onCall(method, result)
	caller, _ := callerOf(ctx) // has been asked before
	switch {
	case err == nil:
		e.log.Debug("call", "method", method, "uid", caller.UID)
	case result == internalReason:
		e.log.Error("call failed", "method", method, "uid", caller.UID, "err", err)
	default:
		e.log.Info("call refused", "method", method, "uid", caller.UID, "reason", result, "err", err)
	}
}
