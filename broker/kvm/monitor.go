package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// greetingWait is how long a free monitor may take to greet. QEMU greets at
// once unless it hangs or serves another client.
const greetingWait = 10 * time.Second

var (
	// errNoGreeting: connected, but QEMU says nothing.
	errNoGreeting = errors.New("no greeting")
	// errEnded: the connection is over; what was asked last may or may not have been done.
	errEnded = errors.New("the monitor's connection ended")
)

// monitor is a connection to a guest's QMP monitor. It is safe for concurrent
// use. Replies are matched by id; one that nobody waits for any more is dropped.
type monitor struct {
	conn    net.Conn
	frames  *frameReader
	onEvent func(event string, data json.RawMessage) // called by the reader, must not block
	onEnd   func(cause error)                        // called by the reader as its last act, may block

	writing chan struct{} // capacity 1: held by who writes

	mu    sync.Mutex // guards what follows; never held while waiting
	last  uint64     // id of the newest request
	calls map[string]chan frame
	cause error // why the connection ended

	done chan struct{} // closed when the connection has ended
}

// newMonitor prepares a monitor on a fresh connection; greet and negotiate follow.
func newMonitor(conn net.Conn, onEvent func(string, json.RawMessage), onEnd func(error)) *monitor {
	return &monitor{
		conn: conn, frames: newFrameReader(conn), onEvent: onEvent, onEnd: onEnd,
		writing: make(chan struct{}, 1), calls: map[string]chan frame{}, done: make(chan struct{}),
	}
}

// negotiate starts the reader, one goroutine that blocks in a read until the
// connection ends, and enters command mode.
func (m *monitor) negotiate(ctx context.Context) error {
	go m.read()
	if err := m.call(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.close()
		return err
	}
	return nil
}

// greet waits for the greeting, until greetingWait or the context's end.
func (m *monitor) greet(ctx context.Context) error {
	if err := m.conn.SetReadDeadline(time.Now().Add(greetingWait)); err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = m.conn.SetReadDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	fr, err := m.frames.next()
	if !stop() {
		<-interrupted
	}
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", errNoGreeting, context.Cause(ctx))
		}
		return fmt.Errorf("%w within %v", errNoGreeting, greetingWait)
	case err != nil:
		return fmt.Errorf("%w: %w", errEnded, err)
	case fr.Greeting == nil:
		return &protocolError{errors.New("the first message is no QMP greeting")}
	}
	return m.conn.SetReadDeadline(time.Time{})
}

// read hands on replies and events until the connection ends.
func (m *monitor) read() {
	for {
		fr, err := m.frames.next()
		switch {
		case err != nil:
			m.onEnd(m.end(err))
			return
		case fr.Event != "":
			m.onEvent(fr.Event, fr.Data)
		default:
			m.deliver(fr)
		}
	}
}

// deliver gives a reply to the call that waits for it, if one does.
func (m *monitor) deliver(fr frame) {
	var id string
	if json.Unmarshal(fr.ID, &id) != nil {
		return // foreign: our ids are strings
	}
	m.mu.Lock()
	reply := m.calls[id]
	delete(m.calls, id)
	m.mu.Unlock()
	if reply != nil {
		reply <- fr // has room for one
	}
}

// end closes the connection and lets all calls fail. The first cause counts, and is returned.
func (m *monitor) end(cause error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cause == nil {
		m.cause = cause
		close(m.done)
		m.conn.Close()
	}
	return m.cause
}

// close ends the connection on our own wish.
func (m *monitor) close() { _ = m.end(net.ErrClosed) }

// closed says whether the connection has ended.
func (m *monitor) closed() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

func (m *monitor) endedError() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Errorf("%w: %w", errEnded, m.cause)
}

// call runs a command and decodes its result, both of which may be nil. Its
// errors are a *qmpError (QEMU refused), errEnded, or the context's cause; after the last two the
// command may or may not have been run.
func (m *monitor) call(ctx context.Context, command string, args, result any) error {
	id, reply, err := m.register()
	if err != nil {
		return err
	}
	defer m.forget(id)
	if err := m.send(ctx, id, command, args); err != nil {
		return err
	}
	select {
	case fr := <-reply:
		return decodeReply(fr, command, result)
	case <-m.done:
	case <-ctx.Done():
		return fmt.Errorf("no reply to %s: %w", command, context.Cause(ctx))
	}
	select {
	case fr := <-reply: // came just before the end
		return decodeReply(fr, command, result)
	default:
		return m.endedError()
	}
}

func (m *monitor) register() (id string, reply chan frame, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cause != nil {
		return "", nil, fmt.Errorf("%w: %w", errEnded, m.cause)
	}
	m.last++
	id = "vfbroker-" + strconv.FormatUint(m.last, 10)
	reply = make(chan frame, 1)
	m.calls[id] = reply
	return id, reply, nil
}

func (m *monitor) forget(id string) {
	m.mu.Lock()
	delete(m.calls, id)
	m.mu.Unlock()
}

// send writes one request. A request cut in the middle by the context's end
// leaves the stream useless, so the connection is closed.
func (m *monitor) send(ctx context.Context, id, command string, args any) error {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	select {
	case m.writing <- struct{}{}:
		defer func() { <-m.writing }()
	case <-ctx.Done():
		return fmt.Errorf("no turn to send %s: %w", command, context.Cause(ctx))
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = m.conn.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	_, err = m.conn.Write(append(request, '\n'))
	if !stop() {
		<-interrupted
		_ = m.conn.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		_ = m.end(&protocolError{errors.New("a request was cut off")})
		return fmt.Errorf("send %s: %w", command, context.Cause(ctx))
	}
	_ = m.end(err)
	return m.endedError()
}

// decodeReply takes the result out of a reply.
func decodeReply(fr frame, command string, result any) error {
	switch {
	case fr.Error != nil:
		return fmt.Errorf("%s: %w", command, fr.Error)
	case fr.Return == nil:
		return fmt.Errorf("%s: %w", command, &protocolError{errors.New("the reply has neither a result nor an error")})
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(fr.Return, result); err != nil {
		return fmt.Errorf("%s: %w", command, &protocolError{fmt.Errorf("decode result: %w", err)})
	}
	return nil
}
