package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// monitor speaks QMP with the machine's QEMU
// (https://www.qemu.org/docs/master/interop/qmp-spec.html), as far as a lab
// needs it: one command at a time, answers without content; events are dropped.
type monitor struct {
	conn interface {
		io.ReadWriteCloser
		SetDeadline(time.Time) error
	}
	mu      sync.Mutex
	decoder *json.Decoder
	ready   bool
}

type qmpRequest struct {
	Execute   string            `json:"execute"`
	Arguments map[string]string `json:"arguments,omitempty"`
}

type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// execute runs one command. After an error other than QEMU's own refusal the
// monitor is of no more use.
func (m *monitor) execute(ctx context.Context, command string, arguments map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("ask QEMU to %s: %w", command, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if !m.ready {
		m.decoder = json.NewDecoder(m.conn)
		if err := m.roundTrip(qmpRequest{Execute: "qmp_capabilities"}); err != nil {
			return fmt.Errorf("greet QEMU: %w", errors.Join(ctx.Err(), err))
		}
		m.ready = true
	}
	if err := m.roundTrip(qmpRequest{command, arguments}); err != nil {
		return fmt.Errorf("ask QEMU to %s: %w", command, errors.Join(ctx.Err(), err))
	}
	return nil
}

func (m *monitor) roundTrip(r qmpRequest) error {
	request, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(request, '\n')); err != nil {
		return err
	}
	for {
		var answer qmpMessage
		if err := m.decoder.Decode(&answer); err != nil {
			return err
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", answer.Error.Class, answer.Error.Desc)
		case answer.Return != nil:
			return nil
		}
	}
}
