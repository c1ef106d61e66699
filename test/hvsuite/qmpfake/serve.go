package qmpfake

import (
	"encoding/json"
	"net"
	"strings"
	"sync"
)

// Fault is what goes wrong with a command.
type Fault int

// The faults.
const (
	None      Fault = iota
	Swallow         // it is done, and the reply never comes
	Ignore          // it is not done, and the reply never comes
	Vanish          // it is not done, and the connection is closed
	Cut             // it is done, and the connection is closed in the middle of the reply
	Oversized       // it is done, and a reply over any limit comes
	Malformed       // it is done, and what comes is no JSON
	Foreign         // replies to other requests come before the right one
	Twice           // the reply comes twice
	Chatty          // events come before, and in between, and after
	Refused         // it is not done, with GenericError
)

// client is the connection of the one client that QEMU serves at a time.
type client struct {
	net.Conn
	mu    sync.Mutex // one message at a time
	ready bool       // capabilities are negotiated: events are sent
}

func (c *client) send(message any) {
	text, err := json.Marshal(message)
	if err != nil {
		panic(err) // a script that cannot be said
	}
	c.sendRaw(append(text, "\r\n"...))
}

// sendRaw writes bytes; a client that went away is noticed by the next read.
func (c *client) sendRaw(text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.Write(text)
}

type object = map[string]any

// accept serves one client after the other, as QEMU does: while one is served,
// others connect and wait without a greeting.
func (g *Guest) accept(listener net.Listener) {
	for {
		g.await()
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		g.await()
		c := &client{Conn: conn}
		g.mu.Lock()
		g.conn = c
		g.change()
		g.mu.Unlock()
		g.serve(c)
		conn.Close()
		g.mu.Lock()
		g.conn = nil
		g.change()
		g.mu.Unlock()
	}
}

// await waits while the guest is frozen.
func (g *Guest) await() {
	g.mu.Lock()
	frozen := g.frozen
	g.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
}

func (g *Guest) serve(c *client) {
	c.send(object{"QMP": object{"version": object{"qemu": object{"major": 10, "minor": 0, "micro": 13}, "package": "scripted"}, "capabilities": []string{"oob"}}})
	for dec := json.NewDecoder(c); ; {
		var request struct {
			Execute   string         `json:"execute"`
			Arguments map[string]any `json:"arguments"`
			ID        any            `json:"id"`
		}
		if dec.Decode(&request) != nil {
			return
		}
		g.await()
		if !g.handle(c, Command{Name: request.Execute, Args: request.Arguments}, request.ID) {
			return
		}
	}
}

// handle runs one command, with its fault; false: the connection is over.
func (g *Guest) handle(c *client, cmd Command, id any) bool {
	g.mu.Lock()
	cmd.N = len(g.log)
	g.log = append(g.log, cmd)
	script := g.script
	g.mu.Unlock()
	fault := None
	if script != nil {
		fault = script(cmd) // may call the guest's methods
	}
	defer func() {
		g.mu.Lock()
		g.change()
		g.mu.Unlock()
	}()
	chat := func() {
		if fault == Chatty {
			c.send(object{"event": "NIC_RX_FILTER_CHANGED", "data": object{"path": "/machine/x"}, "timestamp": object{"seconds": 1, "microseconds": 2}})
		}
	}
	switch fault {
	case Vanish:
		return false
	case Ignore:
		return true
	case Refused:
		c.send(object{"error": object{"class": "GenericError", "desc": "scripted refusal"}, "id": id})
		return true
	}
	chat()
	reply := g.run(c, cmd)
	reply["id"] = id
	switch fault {
	case Swallow:
		return true
	case Cut:
		text, _ := json.Marshal(reply)
		c.sendRaw(text[:len(text)/2])
		return false
	case Oversized:
		reply["return"] = strings.Repeat("x", 2<<20)
	case Malformed:
		c.sendRaw([]byte("{\"return\": }}{\r\n"))
		return true
	case Foreign:
		c.send(object{"return": object{"status": "foreign"}, "id": "somebody-else"})
		c.send(object{"return": object{"status": "foreign"}, "id": 7})
		c.send(object{"return": object{"status": "foreign"}})
	case Twice:
		c.send(reply)
	}
	chat()
	c.send(reply)
	chat()
	return true
}

// emit sends an event to a client that negotiated. g.mu is held.
func (g *Guest) emit(event string, data object) {
	if g.conn == nil || !g.conn.ready {
		return
	}
	message := object{"event": event, "timestamp": object{"seconds": 1, "microseconds": 2}}
	if data != nil {
		message["data"] = data
	}
	g.conn.send(message)
}
