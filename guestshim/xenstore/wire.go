package xenstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The message types that are used here (xen/include/public/io/xs_wire.h).
const (
	kindDirectory     = 1
	kindRead          = 2
	kindWatch         = 4
	kindUnwatch       = 5
	kindTxStart       = 6
	kindTxEnd         = 7
	kindWrite         = 11
	kindMkdir         = 12
	kindRemove        = 13
	kindWatchEvent    = 15
	kindError         = 16
	kindDirectoryPart = 22
)

// Limits in bytes. The kernel's device buffers header and payload of a request
// in XENSTORE_PAYLOAD_MAX bytes (drivers/xen/xenbus/xenbus_dev_frontend.c), so a request
// is held to what both ways carry.
const (
	headerSize = 16
	maxReply   = 4096 // XENSTORE_PAYLOAD_MAX
	maxRequest = maxReply - headerSize
	maxPath    = 3072 // XENSTORE_ABS_PATH_MAX
	maxRelPath = 2048 // XENSTORE_REL_PATH_MAX
)

// frame is one message in either direction: struct xsd_sockmsg and its payload.
type frame struct {
	kind    uint32
	id      uint32 // of the request, echoed in its reply
	tx      uint32 // of the transaction; 0: none
	payload []byte
}

// encode is the message as it goes out, in one piece.
func (f frame) encode() []byte {
	b := make([]byte, headerSize, headerSize+len(f.payload))
	for i, word := range []uint32{f.kind, f.id, f.tx, uint32(len(f.payload))} {
		binary.NativeEndian.PutUint32(b[4*i:], word)
	}
	return append(b, f.payload...)
}

// readFrame reads the next message. After an error there is no next one.
func readFrame(r io.Reader) (frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return frame{}, err
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(header[4*i:]) }
	f := frame{kind: word(0), id: word(1), tx: word(2)}
	if word(3) > maxReply {
		return frame{}, fmt.Errorf("%w: a message of type %d has %d bytes, more than %d", errOdd, f.kind, word(3), maxReply)
	}
	f.payload = make([]byte, word(3))
	if _, err := io.ReadFull(r, f.payload); errors.Is(err, io.EOF) {
		return frame{}, io.ErrUnexpectedEOF
	} else if err != nil {
		return frame{}, err
	}
	return f, nil
}

// errOdd says that what came is not xenstore's protocol: what follows it means nothing.
var errOdd = errors.New("it does not speak the xenstore protocol")

// words is a payload of strings that end with a nul each.
func words(s ...string) []byte { return []byte(strings.Join(s, "\x00") + "\x00") }

// parseNames takes the children's names out of a reply.
func parseNames(payload []byte) ([]string, error) {
	if len(payload) == 0 {
		return nil, nil
	}
	text, whole := strings.CutSuffix(string(payload), "\x00")
	names := strings.Split(text, "\x00")
	if !whole || slices.Contains(names, "") || strings.Contains(text, "/") {
		return nil, fmt.Errorf("%w: it sent the list of names %.80q", errOdd, payload)
	}
	return names, nil
}

// parsePart takes the node's generation and a piece of its list of children
// out of a reply. The last piece ends with an empty name.
func parsePart(payload []byte) (generation string, piece []byte, last bool, err error) {
	head, piece, ok := bytes.Cut(payload, []byte{0})
	if !ok || len(head) == 0 || len(piece) == 0 || piece[len(piece)-1] != 0 {
		return "", nil, false, fmt.Errorf("%w: it sent the part %.80q of a list of names", errOdd, payload)
	}
	if len(piece) == 1 || piece[len(piece)-2] == 0 {
		return string(head), piece[:len(piece)-1], true, nil
	}
	return string(head), piece, false, nil
}

// parseToken takes the watch's token out of an event: its path, its token, and
// what a later protocol may add.
func parseToken(payload []byte) (string, error) {
	parts := strings.Split(string(payload), "\x00")
	if len(parts) < 3 { // what follows the last nul is the third
		return "", fmt.Errorf("%w: it sent the event %.80q", errOdd, payload)
	}
	return parts[1], nil
}

// parseTxID takes the id of a new transaction out of a reply.
func parseTxID(payload []byte) (uint32, error) {
	id, err := strconv.ParseUint(strings.TrimSuffix(string(payload), "\x00"), 10, 32)
	if err != nil || id == 0 {
		return 0, fmt.Errorf("%w: it sent the transaction id %.80q", errOdd, payload)
	}
	return uint32(id), nil
}

// parseOK checks the reply to a request that has no other answer.
func parseOK(payload []byte) error {
	if strings.TrimSuffix(string(payload), "\x00") != "OK" {
		return fmt.Errorf("%w: it sent %.80q instead of OK", errOdd, payload)
	}
	return nil
}

var (
	errnoName = regexp.MustCompile(`^E[A-Z0-9]{1,30}$`)
	pathChars = regexp.MustCompile(`^[A-Za-z0-9/_@-]+$`)
)

// errnos are the names by which errors are sent (struct xsd_errors in
// xs_wire.h), and EQUOTA of oxenstored.
var errnos = map[string]syscall.Errno{
	"EINVAL": syscall.EINVAL, "EACCES": syscall.EACCES, "EEXIST": syscall.EEXIST, "EISDIR": syscall.EISDIR,
	"ENOENT": syscall.ENOENT, "ENOMEM": syscall.ENOMEM, "ENOSPC": syscall.ENOSPC, "EIO": syscall.EIO,
	"ENOTEMPTY": syscall.ENOTEMPTY, "ENOSYS": syscall.ENOSYS, "EROFS": syscall.EROFS, "EBUSY": syscall.EBUSY,
	"EAGAIN": syscall.EAGAIN, "EISCONN": syscall.EISCONN, "E2BIG": syscall.E2BIG, "EPERM": syscall.EPERM,
	"EQUOTA": syscall.EDQUOT,
}

// parseError turns an error reply into an error: a syscall.Errno where the name is known.
func parseError(payload []byte) error {
	name := strings.TrimSuffix(string(payload), "\x00")
	if errno, known := errnos[name]; known {
		return errno
	}
	if !errnoName.MatchString(name) {
		return fmt.Errorf("%w: it sent the error %.80q", errOdd, payload)
	}
	return fmt.Errorf("xenstored refuses it with %s", name)
}

// checkPath refuses what xenstored refuses too (canonicalize in its core.c): over
// the kernel's device its refusal of a watch ends the connection.
func checkPath(path string) error {
	most := maxPath
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		most = maxRelPath
	}
	switch {
	case len(path) > most:
		return fmt.Errorf("%w: a path of %d bytes, at most %d are allowed", syscall.ENAMETOOLONG, len(path), most)
	case !pathChars.MatchString(path) || strings.Contains(path, "//") || strings.HasSuffix(path, "/") && path != "/":
		return fmt.Errorf("%w: a path is made of names of A-Z a-z 0-9 - _ @ with one / between them", syscall.EINVAL)
	}
	return nil
}
