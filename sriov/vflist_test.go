package sriov

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vfbroker/rdma/ib"
)

// attr is a netlink attribute under construction.
func attr(kind uint16, value []byte) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(ne.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func words(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// vfInfo is one VF as the kernel describes it; unknown is what it says of a
// setting that the driver does not report.
func vfInfo(vf uint32, mac net.HardwareAddr, vlan, qos, minRate, maxRate, spoofChk, trust uint32) []byte {
	return attr(attrVFInfo, join(
		attr(attrVFMAC, join(words(vf), mac, make([]byte, 32-len(mac)))),
		attr(13, make([]byte, 32)), // broadcast address, without the VF's number
		attr(attrVFVLAN, words(vf, vlan, qos)),
		attr(attrVFRate, words(vf, minRate, maxRate)),
		attr(3, words(vf, maxRate)), // IFLA_VF_TX_RATE
		attr(attrVFSpoofChk, words(vf, spoofChk)),
		attr(attrVFLinkState, words(vf, 0)),
		attr(attrVFTrust, words(vf, trust)),
	))
}

const unknown = 1<<32 - 1

// ibInfo is one VF of an InfiniBand PF: its list shows the PF's own address for every VF, and
// the GUIDs that were given (ipoib_get_vf_config in drivers/infiniband/ulp/ipoib/ipoib_main.c).
func ibInfo(vf uint32, mac net.HardwareAddr, node, port uint64) []byte {
	ne := binary.NativeEndian
	return attr(attrVFInfo, join(
		attr(attrVFMAC, join(words(vf), mac, make([]byte, 32-len(mac)))),
		attr(attrVFLinkState, words(vf, 0)),
		attr(attrVFNodeGUID, ne.AppendUint64(words(vf, 0), node)),
		attr(attrVFPortGUID, ne.AppendUint64(words(vf, 0), port)),
	))
}

func TestParseGUIDs(t *testing.T) {
	t.Parallel()
	mac := make(net.HardwareAddr, 20)
	copy(mac[8:], []byte{0xfe, 0x80})
	link := func(infos ...[]byte) []byte {
		return join(attr(unix.IFLA_ADDRESS, mac), attr(unix.IFLA_NUM_VF, words(2)), attr(unix.IFLA_VFINFO_LIST, join(infos...)))
	}
	short := attr(attrVFInfo, join(attr(attrVFLinkState, words(1, 0)), attr(attrVFNodeGUID, words(1, 0))))
	ofAnother := attr(attrVFInfo, join(attr(attrVFLinkState, words(1, 0)), attr(attrVFPortGUID, words(0, 0, 1, 1))))
	for _, tt := range []struct {
		name string
		in   []byte
		want []VFAttrs
		err  error
	}{
		{"one has them", link(ibInfo(0, mac, 0, 0), ibInfo(1, mac, 0x1122334455667701, 0x1122334455667702)), []VFAttrs{
			{MAC: mac, LinkState: new(0), NodeGUID: new(ib.GUID), PortGUID: new(ib.GUID)},
			{MAC: mac, LinkState: new(0), NodeGUID: &ib.GUID{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 1}, PortGUID: &ib.GUID{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 2}},
		}, nil},
		{"short", link(ibInfo(0, mac, 0, 0), short), nil, ErrNotReadable},
		{"of another VF", link(ibInfo(0, mac, 0, 0), ofAnother), nil, ErrNotReadable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseVFList(tt.in)
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestWriteGUID: what is refused without the kernel, which a handle that is none shows.
func TestWriteGUID(t *testing.T) {
	t.Parallel()
	if err := writeGUID(nil, nil, PF{Ifindex: 1}, 0, ib.GUID{1}, 0); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("GUID of an Ethernet VF: %v", err)
	}
	if err := writeGUID(nil, nil, PF{Ifindex: 1, InfiniBand: true}, 0, ib.GUID{}, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("GUID of zero: %v", err)
	}
}

// igbLink is the reply for a PF with two VFs, in the order of the list given.
func igbLink(infos ...[]byte) []byte {
	return join(
		attr(unix.IFLA_IFNAME, []byte("eth0\x00")),
		attr(unix.IFLA_ADDRESS, []byte{0x52, 0x54, 0, 0x0a, 0, 1}),
		attr(unix.IFLA_NUM_VF, words(2)),
		attr(unix.IFLA_VFINFO_LIST|unix.NLA_F_NESTED, join(infos...)),
	)
}

func TestParseVFList(t *testing.T) {
	t.Parallel()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 5}
	vf0 := VFAttrs{MAC: make(net.HardwareAddr, 6), VLAN: new(0), QoS: new(0), MinRate: new(0), MaxRate: new(0), LinkState: new(0)}
	vf1 := VFAttrs{MAC: mac, VLAN: new(77), QoS: new(3), MinRate: new(0), MaxRate: new(100), SpoofChk: new(false), Trust: new(true), LinkState: new(0)}
	info0 := vfInfo(0, nil, 0, 0, 0, 0, unknown, unknown)
	info1 := vfInfo(1, mac, 77, 3, 0, 100, 0, 1)
	mixed := attr(attrVFInfo, join(attr(attrVFTrust, words(0, 1)), attr(attrVFSpoofChk, words(1, 1))))
	for _, tt := range []struct {
		name string
		in   []byte
		want []VFAttrs
		err  error
	}{
		{"in order", igbLink(info0, info1), []VFAttrs{vf0, vf1}, nil},
		{"known by number, not by place", igbLink(info1, info0), []VFAttrs{vf0, vf1}, nil},
		{"no VFs", attr(unix.IFLA_NUM_VF, words(0)), []VFAttrs{}, nil},
		{"one missing", igbLink(info0), nil, ErrNotReadable},
		{"the driver has no list", attr(unix.IFLA_NUM_VF, words(2)), nil, ErrNotReadable},
		{"number beyond the count", igbLink(info0, vfInfo(2, nil, 0, 0, 0, 0, 0, 0)), nil, ErrNotReadable},
		{"two numbers in one", igbLink(mixed, info1), nil, ErrNotReadable},
		{"short attribute", igbLink(attr(attrVFInfo, attr(attrVFVLAN, words(0, 1))), info1), nil, ErrNotReadable},
		{"empty entry", igbLink(attr(attrVFInfo, nil), info1), nil, ErrNotReadable},
		{"length wrapped at 64 KiB", wrapped(t), nil, ErrNotReadable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseVFList(tt.in)
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// wrapped is a list of 420 VFs whose length the kernel stored in 16 bits.
func wrapped(t *testing.T) []byte {
	t.Helper()
	const n = 420
	var list []byte
	for i := range uint32(n) {
		list = append(list, vfInfo(i, nil, 0, 0, 0, 0, 0, 0)...)
	}
	if len(list) < 1<<16 {
		t.Fatalf("the list has %d bytes only", len(list))
	}
	return join(attr(unix.IFLA_NUM_VF, words(n)), attr(unix.IFLA_VFINFO_LIST, list))
}

func TestParseLinkReply(t *testing.T) {
	t.Parallel()
	reply := func(kind, flags uint16, body []byte) []byte {
		b := words(uint32(unix.SizeofNlMsghdr + len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, flags)
		return join(b, words(0, 0), body)
	}
	errno := func(e unix.Errno) []byte { return words(uint32(-int32(e))) }
	refusal := join(errno(unix.EINVAL), make([]byte, unix.SizeofNlMsghdr), attr(unix.NLMSGERR_ATTR_MSG, []byte("no such VF\x00")))
	for _, tt := range []struct {
		name string
		in   []byte
		want string // attributes
		err  error
		text string
	}{
		{name: "link", in: reply(unix.RTM_NEWLINK, 0, join(make([]byte, unix.SizeofIfInfomsg), []byte("attrs"))), want: "attrs"},
		{name: "errno", in: reply(unix.NLMSG_ERROR, 0, errno(unix.EMSGSIZE)), err: unix.EMSGSIZE, text: "message too long"},
		{name: "errno in the kernel's words", in: reply(unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, refusal), err: unix.EINVAL, text: "invalid argument: no such VF"},
		{name: "acknowledgement", in: reply(unix.NLMSG_ERROR, 0, errno(0)), text: "parse netlink reply: an acknowledgement and no link"},
		{name: "other type", in: reply(unix.RTM_DELLINK, 0, make([]byte, 16)), text: "parse netlink reply: type 17 with 16 bytes is no link"},
		{name: "short", in: make([]byte, 15), text: "parse netlink reply: it is shorter than its header"},
		{name: "cut", in: reply(unix.RTM_NEWLINK, 0, make([]byte, 32))[:40], text: "parse netlink reply: it says 48 bytes and has 40"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseLinkReply(tt.in)
			if string(got) != tt.want || (err == nil) != (tt.text == "") {
				t.Fatalf("got %q, %v", got, err)
			}
			if err != nil && err.Error() != tt.text || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %q", err, tt.text)
			}
		})
	}
}

func FuzzVFList(f *testing.F) {
	f.Add(igbLink(vfInfo(0, nil, 0, 0, 0, 0, 1, 1), vfInfo(1, net.HardwareAddr{2, 0, 0, 0, 0, 1}, 1, 2, 3, 4, 0, 0)))
	f.Add(attr(unix.IFLA_NUM_VF, words(1<<31)))
	f.Fuzz(func(t *testing.T, link []byte) {
		vfs, err := parseVFList(link)
		if err != nil && (vfs != nil || !errors.Is(err, ErrNotReadable)) {
			t.Errorf("%d VFs beside %v", len(vfs), err)
		}
		if len(vfs) > 0xffff {
			t.Errorf("%d VFs", len(vfs))
		}
	})
}

func FuzzLinkReply(f *testing.F) {
	f.Add([]byte{16, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(join(words(52), words(2|0x200<<16), words(0, 0), words(uint32(0xffffffea)), make([]byte, 16), attr(1, []byte("why\x00"))))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if attrs, err := parseLinkReply(msg); err == nil && len(attrs) > len(msg)-unix.SizeofNlMsghdr-unix.SizeofIfInfomsg {
			t.Errorf("%d bytes of attributes in %d", len(attrs), len(msg))
		}
	})
}

// TestGetLink asks the kernel that runs the test; the loopback interface is everywhere.
func TestGetLink(t *testing.T) {
	t.Parallel()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	attrs, err := getLink(lo.Index, extFilterVF|extFilterSkipStats)
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for kind, value := range attributes(attrs) {
		if kind == unix.IFLA_IFNAME {
			name = string(value[:len(value)-1])
		}
	}
	if name != "lo" {
		t.Errorf("interface %d is called %q", lo.Index, name)
	}
	if vfs, err := parseVFList(attrs); err != nil || len(vfs) != 0 {
		t.Errorf("the loopback interface has %d VFs, %v", len(vfs), err)
	}
	if mac, err := permanentMAC(lo.Index); err != nil || len(mac) != 0 {
		t.Errorf("the loopback interface has a permanent address %s, %v", mac, err)
	}
	if _, err := getLink(1<<30, 0); !errors.Is(err, unix.ENODEV) {
		t.Errorf("ask for an interface that is not there: %v", err)
	}
	away := PF{Ifindex: 1 << 30} // as one that was there when its PF was read
	if _, err := (rtnetlink{}).VFs(t.Context(), away); !errors.Is(err, ErrNoNetdev) || !errors.Is(err, unix.ENODEV) {
		t.Errorf("read attributes through it: %v, want %v", err, ErrNoNetdev)
	}
	if _, err := (rtnetlink{}).Set(t.Context(), away, 0, DefaultAttrs()); !errors.Is(err, ErrNoNetdev) || !errors.Is(err, unix.ENODEV) {
		t.Errorf("set attributes through it: %v, want %v", err, ErrNoNetdev)
	}
}
