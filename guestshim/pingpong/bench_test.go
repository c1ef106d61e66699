package pingpong_test

import (
	"context"
	"net"
	"testing"

	"vfbroker/guestshim/pingpong"
)

// The thin ends against the net package's, over loopback: what is left of a
// path's own time in each figure.

func BenchmarkRoundTripThin(b *testing.B) {
	peer := echo(b, "127.0.0.1:0")
	for b.Loop() {
		if _, err := pingpong.Run(context.Background(), pingpong.Spec{Peer: peer, Size: 64, Rounds: 1000}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/round")
}

func BenchmarkRoundTripNetPackage(b *testing.B) {
	peer := echo(b, "127.0.0.1:0")
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(peer))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	payload := make([]byte, 64)
	for b.Loop() {
		for range 1000 {
			if _, err := conn.Write(payload); err != nil {
				b.Fatal(err)
			}
			if _, err := conn.Read(payload); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/round")
}
