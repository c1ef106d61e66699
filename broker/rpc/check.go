package rpc

import (
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vfbroker/broker"
)

// MaxPageSize is the most entries of a list that one answer holds.
const MaxPageSize = 1000

// maxString is how many bytes a string field may have unless stringLimits says otherwise.
const maxString = 256

// stringLimits are the lengths in bytes of string fields, by name.
var stringLimits = map[protoreflect.Name]int{
	"request_id": 128,
	"guest":      64,
	"lease_id":   64,
	"epoch":      64,
	"mac":        17,
}

// intLimits are the largest values of integer fields, by name; the smallest is 0.
var intLimits = map[protoreflect.Name]int64{
	"page_size":     MaxPageSize,
	"vlan":          broker.MaxVLAN,
	"num_vfs":       1<<16 - 1, // TotalVFs is 16 bits wide
	"max_rate_mbps": 1<<31 - 1,
}

// required are the fields that a request must have.
var required = map[protoreflect.Name][]protoreflect.Name{
	"CarveRequest":    {"request_id", "pf"},
	"ClearRequest":    {"request_id", "function"},
	"AcquireRequest":  {"request_id", "guest"},
	"ReleaseRequest":  {"request_id", "lease_id", "generation"},
	"RenewRequest":    {"request_id", "lease_id", "generation", "duration"}, // who forgets it does not mean "for good"
	"Generation":      {"epoch", "counter"},
	"GetLeaseRequest": {"lease_id"},
}

// check says whether a request is well formed: what it must have is there, and
// each field is within its limits. What a value means is the broker's to judge.
// The error names the field.
func check(m proto.Message) error { return checkMessage(m.ProtoReflect(), "") }

func checkMessage(m protoreflect.Message, prefix string) error {
	d := m.Descriptor()
	for _, name := range required[d.Name()] {
		if f := d.Fields().ByName(name); f == nil || !m.Has(f) {
			return invalid(prefix+string(name), "is missing")
		}
	}
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		err = checkField(f, v, prefix+string(f.Name()))
		return err == nil
	})
	return err
}

func checkField(f protoreflect.FieldDescriptor, v protoreflect.Value, name string) error {
	if f.IsList() || f.IsMap() {
		return invalid(name, "is a list, which no request has")
	}
	switch f.Kind() {
	case protoreflect.MessageKind:
		return checkNested(v.Message(), name)
	case protoreflect.StringKind:
		return checkString(f.Name(), v.String(), name)
	case protoreflect.Int32Kind:
		if n, most := v.Int(), intLimits[f.Name()]; n < 0 || n > most {
			return invalid(name, fmt.Sprintf("is %d, want 0 to %d", n, most))
		}
	case protoreflect.EnumKind:
		if f.Enum().Values().ByNumber(v.Enum()) == nil {
			return invalid(name, fmt.Sprintf("has the unknown value %d", v.Enum()))
		}
	}
	return nil
}

// checkNested checks a message in a request. Those of times have rules of their own.
func checkNested(m protoreflect.Message, name string) error {
	var err error
	switch v := m.Interface().(type) {
	case *durationpb.Duration:
		if err = v.CheckValid(); err == nil && v.AsDuration() < 0 {
			return invalid(name, fmt.Sprintf("is %s, want 0 and up", v.AsDuration()))
		}
	case *timestamppb.Timestamp:
		err = v.CheckValid()
	default:
		return checkMessage(m, name+".")
	}
	if err != nil {
		return invalid(name, "is out of its range")
	}
	return nil
}

// checkString keeps out what is too long, and control characters, which end up in logs and on terminals.
func checkString(field protoreflect.Name, s, name string) error {
	most, ok := stringLimits[field]
	if !ok {
		most = maxString
	}
	if len(s) > most {
		return invalid(name, fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), most))
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		return invalid(name, fmt.Sprintf("has a character that cannot be printed at byte %d", i))
	}
	return nil
}

func invalid(field, why string) error {
	return fmt.Errorf("read request: field %s %s: %w", field, why, broker.ErrInvalid)
}
