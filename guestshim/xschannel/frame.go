package xschannel

import (
	"fmt"
	"strconv"
	"strings"
)

// frame is what the node of a direction holds. Its zero value is none.
type frame struct {
	seq  uint64
	data string // "": the end of the direction
}

func (f frame) String() string { return strconv.FormatUint(f.seq, 10) + " " + f.data }

// parseFrame reads the node of a direction. It takes what String makes and nothing else.
func parseFrame(value string) (frame, error) {
	if value == "" {
		return frame{}, nil
	}
	head, data, _ := strings.Cut(value, " ")
	seq, err := strconv.ParseUint(head, 10, 64)
	f := frame{seq, data}
	if err != nil || seq == 0 || len(data) > maxData || f.String() != value {
		return frame{}, fmt.Errorf("%.40q is no frame", value)
	}
	return f, nil
}

// parseAck reads an ack; one that was not written yet is 0.
func parseAck(value string) (uint64, error) {
	if value == "" {
		return 0, nil
	}
	seq, err := strconv.ParseUint(value, 10, 64)
	if err != nil || strconv.FormatUint(seq, 10) != value {
		return 0, fmt.Errorf("%.40q is no acknowledgement", value)
	}
	return seq, nil
}
