package sim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"

	"vfbroker/broker"
	"vfbroker/guestshim"
)

// shimManners is how the shim in a guest answers.
type shimManners int

const (
	answers shimManners = iota
	silent
	lies    // it reports something that is no answer
	hangsUp // it closes the connection
)

// serveShims gives every guest a shim. What is dialled ends with the connection.
func (w *world) serveShims(manners map[broker.GuestID]shimManners) {
	w.hv.Serve(func(g broker.GuestID) (net.Conn, error) {
		host, guest := net.Pipe()
		go serveShim(guest, manners[g])
		return host, nil
	})
}

// serveShim answers requests in the protocol of package guestshim.
func serveShim(conn net.Conn, m shimManners) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for m != hangsUp {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var request struct {
			ID   uint64             `json:"id"`
			Op   string             `json:"op"`
			Body guestshim.Identity `json:"body"`
		}
		switch err := json.Unmarshal(line, &request); {
		case err != nil:
			return
		case m == answers && request.Op == "await":
			carrier := true
			report, _ := json.Marshal(guestshim.Report{Driver: "igbvf", Netdev: "eth1", MAC: request.Body.MAC, Up: true, Carrier: &carrier, Link: true})
			fmt.Fprintf(conn, `{"v":%d,"id":%d,"body":%s}`+"\n", guestshim.Version, request.ID, report)
		case m == lies && request.Op == "await":
			fmt.Fprintf(conn, `{"v":%d,"id":%d,"body":{"driver":"a\u0007b"}}`+"\n", guestshim.Version, request.ID)
		}
	}
}
