package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"vfbroker/broker"
)

// line is the way to one guest. It exists while a method uses it or the guest
// holds a slot of ours: then its session stays connected, so that events arrive. A QMP socket
// serves one client, so otherwise it is left free.
type line struct {
	guest   broker.GuestID
	dialing chan struct{} // capacity 1: held by who connects
	users   int           // methods at work; guarded by Hypervisor.mu
	session *session      // nil: not connected; guarded by Hypervisor.mu
}

// session is one connection to the monitor of one incarnation of a guest.
type session struct {
	guest    broker.GuestID
	path     string // of the monitor's socket
	mon      *monitor
	proc     process
	pidfd    *os.File
	plugging chan struct{} // capacity 1: held by who chooses a port and plugs

	slots   map[broker.Slot]*slotState // ours; guarded by Hypervisor.mu
	deleted int                        // how many slots were; guarded by Hypervisor.mu

	over chan struct{} // closed when it is known what became of the process
	gone bool          // it ended; valid once over
}

// use calls do with a session of a guest, connecting if there is none, and
// gives do's errors their class.
func (h *Hypervisor) use(ctx context.Context, id broker.GuestID, do func(*session) error) error {
	cfg, err := h.config(id)
	if err != nil {
		return err
	}
	l := h.enter(id)
	defer h.leave(l)
	s, err := h.connect(ctx, l, cfg.QMP)
	if err != nil {
		return err
	}
	return s.explain(ctx, do(s))
}

// useThis is use for one incarnation of a guest. ErrNotFound: its process has
// ended. That nobody listens on its socket proves nothing: the file may have been removed.
func (h *Hypervisor) useThis(ctx context.Context, g broker.Guest, do func(*session) error) error {
	err := h.use(ctx, g.ID, func(s *session) error {
		if s.proc.incarnation() != g.Incarnation {
			return fmt.Errorf("guest %s: %w: incarnation %s has ended (now process %d)", g.ID, broker.ErrNotFound, g.Incarnation, s.proc.pid)
		}
		return do(s)
	})
	if !errors.Is(err, broker.ErrNotFound) {
		return err
	}
	switch pid, alive, lookErr := lives(h.fs, g.Incarnation); {
	case lookErr != nil:
		return fmt.Errorf("guest %s: %w: see whether it still runs: %w", g.ID, broker.ErrUnavailable, lookErr)
	case alive:
		return fmt.Errorf("guest %s: %w: its QEMU (process %d) has not ended: %v", g.ID, broker.ErrGuestNotReady, pid, err) // %v: one class only
	}
	return err
}

func (h *Hypervisor) enter(id broker.GuestID) *line {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lines[id]
	if l == nil {
		l = &line{guest: id, dialing: make(chan struct{}, 1)}
		h.lines[id] = l
	}
	l.users++
	return l
}

func (h *Hypervisor) leave(l *line) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.users--
	h.settle(l)
}

// settle hangs up and forgets a line that nobody needs. h.mu is held.
func (h *Hypervisor) settle(l *line) {
	if l.users > 0 || l.session != nil && len(l.session.slots) > 0 {
		return
	}
	if l.session != nil {
		l.session.mon.close()
		l.session = nil
	}
	if h.lines[l.guest] == l {
		delete(h.lines, l.guest)
	}
}

// connect returns the line's session, a new one if need be.
func (h *Hypervisor) connect(ctx context.Context, l *line, path string) (*session, error) {
	select {
	case l.dialing <- struct{}{}:
		defer func() { <-l.dialing }()
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to guest %s: %w: another request is still connecting to monitor %s: %w",
			l.guest, broker.ErrGuestNotReady, path, context.Cause(ctx))
	}
	h.mu.Lock()
	s := l.session
	h.mu.Unlock()
	if s != nil && s.path == path && !s.mon.closed() {
		return s, nil
	}
	s, err := h.dial(ctx, l, path)
	if err != nil {
		return nil, notConnected(l.guest, path, err)
	}
	h.mu.Lock()
	if old := l.session; old != nil {
		old.mon.close()
	}
	if old := h.ending[l.guest]; old != nil && old.proc == s.proc {
		old.stopWaiting() // it did not end
	}
	l.session = s
	h.mu.Unlock()
	return s, nil
}

// dial connects to a monitor and learns whose it is. The process is read
// before the negotiation, whose success shows that it still lived then.
func (h *Hypervisor) dial(ctx context.Context, l *line, path string) (*session, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	s := &session{guest: l.guest, path: path, plugging: make(chan struct{}, 1),
		slots: map[broker.Slot]*slotState{}, over: make(chan struct{})}
	if err := s.identify(h, conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, err
	}
	s.mon = newMonitor(conn,
		func(event string, data json.RawMessage) { h.onEvent(l, s, event, data) },
		func(cause error) { h.onEnd(l, s, cause) })
	if err := s.mon.greet(ctx); err != nil {
		conn.Close()
		s.pidfd.Close()
		return nil, err
	}
	return s, s.mon.negotiate(ctx) // from here on onEnd closes the pidfd
}

func (s *session) identify(h *Hypervisor, conn *net.UnixConn) error {
	pid, err := peerPID(conn)
	if err != nil {
		return err
	}
	if s.pidfd, err = openPIDFD(pid); err != nil {
		return err
	}
	if s.proc, err = readProcess(h.fs, pid); err != nil {
		s.pidfd.Close()
		return err
	}
	return nil
}

// notConnected says why there is no session, and what helps.
func notConnected(guest broker.GuestID, path string, err error) error {
	class, remedy := broker.ErrGuestNotReady, ""
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ESRCH):
		class, remedy = broker.ErrNotFound, "; it does not run: start it with -qmp unix:"+path+",server=on,wait=off"
	case errors.Is(err, errNoGreeting), errors.Is(err, syscall.EAGAIN):
		remedy = "; another client holds it, or QEMU hangs: give the broker its own -qmp socket"
	case ended(err):
		remedy = "; it closed at once: see whether the guest still runs"
	}
	return fmt.Errorf("connect to guest %s: %w: monitor %s: %w%s", guest, class, path, err, remedy)
}

// ended says whether the connection was closed by the other end.
func ended(err error) bool {
	var protocol *protocolError
	return errors.Is(err, errEnded) && !errors.As(err, &protocol)
}

// explain gives an error of a command its class, unless it has one.
func (s *session) explain(ctx context.Context, err error) error {
	var refusal *qmpError
	switch {
	case err == nil, classified(err):
		return err
	case errors.As(err, &refusal):
		return fmt.Errorf("guest %s: %w: QEMU: %w", s.guest, broker.ErrUnavailable, err)
	case ended(err):
		select {
		case <-s.over:
			if s.gone {
				return s.notFound()
			}
		case <-ctx.Done():
		}
		return fmt.Errorf("guest %s: %w: monitor %s: %w", s.guest, broker.ErrGuestNotReady, s.path, err)
	case ctx.Err() != nil:
		return fmt.Errorf("guest %s: %w: monitor %s: %w; QEMU (process %d) is stopped, hangs or is busy: look at it",
			s.guest, broker.ErrGuestNotReady, s.path, err, s.proc.pid)
	default:
		return fmt.Errorf("guest %s: %w: monitor %s: %w", s.guest, broker.ErrGuestNotReady, s.path, err)
	}
}

func (s *session) notFound() error {
	return fmt.Errorf("guest %s: %w: its QEMU (process %d) has ended", s.guest, broker.ErrNotFound, s.proc.pid)
}

// classified says whether an error already wraps one of the broker's.
func classified(err error) bool {
	for _, class := range []error{broker.ErrNoCapacity, broker.ErrNotFound, broker.ErrConflict,
		broker.ErrGuestNotReady, broker.ErrUnsupported, broker.ErrUnavailable, broker.ErrInvalid} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

// onEvent takes an event from the reader of a session. The events are those of
// qapi/qdev.json and qapi/run-state.json.
func (h *Hypervisor) onEvent(l *line, s *session, event string, data json.RawMessage) {
	var about struct {
		Device string `json:"device"` // not there for devices inside of devices
	}
	if len(data) > 0 && json.Unmarshal(data, &about) != nil {
		return
	}
	slot := broker.Slot(about.Device)
	switch event {
	case "DEVICE_DELETED":
		if !slot.Ours() {
			return
		}
		h.forget(l, s, slot)
		h.events.Publish(broker.Event{Kind: broker.EventDetached, Guest: s.guest, Slot: slot})
	case "DEVICE_UNPLUG_GUEST_ERROR":
		if !slot.Ours() {
			return
		}
		h.answered(s, slot)
		h.events.Publish(broker.Event{Kind: broker.EventUnplugRefused, Guest: s.guest, Slot: slot})
	case "RESET":
		// The rebooted guest has forgotten what it was asked, so whoever waits must ask again.
		h.answered(s, "")
		h.events.Publish(broker.Event{Kind: broker.EventLost, Guest: s.guest})
	}
}

// onEnd is the reader's last act: it tells that events were lost, and waits
// until the process has ended, or another session shows that it goes on. Closing a
// function resets it, so this can take seconds.
func (h *Hypervisor) onEnd(l *line, s *session, cause error) {
	defer s.pidfd.Close()
	wait, held, replaced := h.lose(l, s, cause)
	if held {
		h.log.Warn("monitor lost while the guest holds functions", "guest", s.guest, "monitor", s.path, "cause", cause)
	}
	if held || replaced { // of a process that was replaced nobody will tell the end
		h.events.Publish(broker.Event{Kind: broker.EventLost, Guest: s.guest})
	}
	if wait {
		s.gone = waitExit(s.pidfd)
	}
	close(s.over)

	h.mu.Lock()
	if h.ending[s.guest] == s {
		delete(h.ending, s.guest)
	}
	h.settle(l)
	h.mu.Unlock()
	if s.gone {
		h.events.Publish(broker.Event{Kind: broker.EventGuestGone, Guest: s.guest})
	}
}

// lose takes a session whose connection has ended off its line. It says whether
// to wait for the end of the process, whether the guest held slots, and whether the wait replaced that
// for another process. Who is behind the socket may greet and hang up each time, so a guest has one wait.
func (h *Hypervisor) lose(l *line, s *session, cause error) (wait, held, replaced bool) {
	var protocol *protocolError
	hungUp := errors.Is(cause, net.ErrClosed)

	h.mu.Lock()
	defer h.mu.Unlock()
	held = len(s.slots) > 0 && !hungUp
	clear(s.slots)
	if l.session == s {
		l.session = nil
	}
	now := h.lines[s.guest] // another line than l, if nobody needed that one any more
	goesOn := now != nil && now.session != nil && now.session.proc == s.proc
	wait = !hungUp && !errors.As(cause, &protocol) && !goesOn
	if !wait {
		return false, held, false
	}
	old := h.ending[s.guest]
	if old != nil {
		old.stopWaiting()
	}
	h.ending[s.guest] = s
	return true, held, old != nil && old.proc != s.proc
}

// stopWaiting ends the wait for the end of the session's process.
func (s *session) stopWaiting() { _ = s.pidfd.SetReadDeadline(time.Unix(1, 0)) }
