package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// The layout of bbolt's file (go.etcd.io/bbolt/internal/common: page.go, meta.go, bucket.go), in the machine's byte order.
const (
	pageHeader  = 16 // id, flags, count, overflow
	pageElement = 16 // of a branch or a leaf page
	metaSize    = 64 // after the header of a meta page, its checksum last

	flagBranch, flagLeaf, flagMeta, flagFreelist = 0x01, 0x02, 0x04, 0x10

	flagBucket = 1 // a leaf's value is a bucket

	boltMagic, boltVersion = 0xED0CDAED, 2
)

// errDamaged: the file is not a whole journal.
var errDamaged = errors.New("it is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errDamaged, fmt.Errorf(format, args...))
}

// boltMeta is a meta page: where a transaction's tree begins.
type boltMeta struct {
	pageSize             uint32
	root, freelist, high uint64 // high: the first page that is not in use yet
	txid                 uint64
}

// noFreelist stands for the list of free pages in a file that keeps none (go.etcd.io/bbolt/internal/common, PgidNoFreelist).
const noFreelist = math.MaxUint64

// pageCheck walks the pages of the newest transaction.
type pageCheck struct {
	r     io.ReaderAt
	meta  boltMeta
	seen  map[uint64]bool // pages that are in use or free
	spare [][]byte        // for the next pages
}

// checkPages looks at every page that the newest transaction of a bbolt file uses: each
// is there once and in its place, keys are in order, and the list of free pages, where there is one, holds exactly the rest. bbolt
// itself believes its pages: it panics on one that makes no sense, in goroutines of its own too, and writes over
// pages in use when the list of free ones is of another time.
func checkPages(r io.ReaderAt, size int64) error {
	meta, err := newestMeta(r, size)
	if err != nil {
		return err
	}
	c := pageCheck{r: r, meta: meta, seen: map[uint64]bool{0: true, 1: true}}
	if meta.high > uint64(size)/uint64(meta.pageSize) {
		return damaged("it was cut short: %d bytes, but %d pages of %d bytes are in use", size, meta.high, meta.pageSize)
	}
	if err := c.tree(meta.root, nil, nil); err != nil {
		return err
	}
	if meta.freelist == noFreelist {
		return nil
	}
	if err := c.free(); err != nil {
		return err
	}
	if n := uint64(len(c.seen)); n != meta.high {
		return damaged("%d of its %d pages are neither in use nor free", meta.high-n, meta.high)
	}
	return nil
}

// newestMeta returns the meta page that bbolt goes by: the newest of the two that are whole.
func newestMeta(r io.ReaderAt, size int64) (best boltMeta, err error) {
	if size == 0 {
		return best, damaged("it is empty")
	}
	found := false
	consider := func(at int64) (boltMeta, error) {
		m, ok, err := readMeta(r, at)
		if ok && (at == 0 || at == int64(m.pageSize)) && (!found || m.txid > best.txid) {
			best, found = m, true
		}
		return m, err
	}
	if _, err := consider(0); err != nil {
		return best, err
	}
	for at := int64(1024); at <= 1024<<14 && at < size; at <<= 1 {
		if _, err := consider(at); err != nil {
			return best, err
		}
	}
	if !found {
		return best, damaged("neither of its first pages is whole, or it is no journal")
	}
	return best, nil
}

// readMeta reads the meta page at an offset, and says whether it is whole.
func readMeta(r io.ReaderAt, at int64) (m boltMeta, ok bool, err error) {
	var b [pageHeader + metaSize]byte
	if n, err := r.ReadAt(b[:], at); n < len(b) {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return m, false, err
	}
	h, order := fnv.New64a(), binary.NativeEndian
	meta := b[pageHeader:]
	h.Write(meta[:metaSize-8])
	m = boltMeta{pageSize: order.Uint32(meta[8:]), root: order.Uint64(meta[16:]), freelist: order.Uint64(meta[32:]),
		high: order.Uint64(meta[40:]), txid: order.Uint64(meta[48:])}
	ok = order.Uint32(meta) == boltMagic && order.Uint32(meta[4:]) == boltVersion && order.Uint64(meta[56:]) == h.Sum64()
	return m, ok && m.pageSize >= 1024 && m.pageSize&(m.pageSize-1) == 0, nil
}

// page reads a page with what it overflows into, which must not have been met yet.
func (c *pageCheck) page(id uint64) (b []byte, flags uint16, err error) {
	size := int64(c.meta.pageSize)
	if id < 2 || id >= c.meta.high {
		return nil, 0, damaged("page %d is named, of %d", id, c.meta.high)
	}
	if n := len(c.spare); n > 0 {
		b, c.spare = c.spare[n-1], c.spare[:n-1]
	} else {
		b = make([]byte, size)
	}
	if _, err := c.r.ReadAt(b, int64(id)*size); err != nil {
		return nil, 0, fmt.Errorf("read page %d: %w", id, err)
	}
	order := binary.NativeEndian
	if is := order.Uint64(b); is != id {
		return nil, 0, damaged("page %d says that it is page %d", id, is)
	}
	more := uint64(order.Uint32(b[12:]))
	if more >= c.meta.high-id {
		return nil, 0, damaged("page %d goes on for %d pages, beyond the last", id, more)
	}
	for p := id; p <= id+more; p++ {
		if c.seen[p] {
			return nil, 0, damaged("page %d is used twice", p)
		}
		c.seen[p] = true
	}
	if more > 0 {
		b = append(b, make([]byte, int64(more)*size)...)
		if _, err := c.r.ReadAt(b[size:], int64(id+1)*size); err != nil {
			return nil, 0, fmt.Errorf("read page %d: %w", id+1, err)
		}
	}
	return b, order.Uint16(b[8:]), nil
}

// tree checks a page and those below it. Its keys are in [low, high); nil: no bound.
func (c *pageCheck) tree(id uint64, low, high []byte) error {
	b, flags, err := c.page(id)
	if err != nil {
		return err
	}
	defer func() { c.spare = append(c.spare, b[:c.meta.pageSize]) }()
	switch flags {
	case flagLeaf:
		return c.leaf(id, b, low, high)
	case flagBranch:
		return c.branch(id, b, low, high)
	default:
		return damaged("page %d is of kind %#x, not part of a tree", id, flags)
	}
}

func (c *pageCheck) branch(id uint64, b, low, high []byte) error {
	elements, err := pageElements(id, b)
	if err != nil {
		return err
	}
	if elements == 0 {
		return damaged("page %d is a branch to nowhere", id)
	}
	order := binary.NativeEndian
	keys, children, least := make([][]byte, elements), make([]uint64, elements), low
	for i := range keys {
		e := pageHeader + i*pageElement
		if keys[i], err = pagePiece(id, b, e, uint64(order.Uint32(b[e:])), uint64(order.Uint32(b[e+4:]))); err != nil {
			return err
		}
		if children[i] = order.Uint64(b[e+8:]); !inOrder(keys[i], least, high, i == 0) {
			return damaged("page %d has keys out of order", id)
		}
		least = keys[i]
	}
	for i, child := range children {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		if err := c.tree(child, keys[i], next); err != nil {
			return err
		}
	}
	return nil
}

func (c *pageCheck) leaf(id uint64, b, low, high []byte) error {
	elements, err := pageElements(id, b)
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	for i := range elements {
		e := pageHeader + i*pageElement
		at, keySize := uint64(order.Uint32(b[e+4:])), uint64(order.Uint32(b[e+8:]))
		key, err := pagePiece(id, b, e, at, keySize)
		if err != nil {
			return err
		}
		value, err := pagePiece(id, b, e, at+keySize, uint64(order.Uint32(b[e+12:])))
		if err != nil {
			return err
		}
		if !inOrder(key, low, high, i == 0) {
			return damaged("page %d has keys out of order", id)
		}
		low = key
		switch flags := order.Uint32(b[e:]); flags {
		case 0:
		case flagBucket:
			if err := c.bucket(id, value); err != nil {
				return err
			}
		default:
			return damaged("page %d has an element of kind %#x", id, flags)
		}
	}
	return nil
}

// bucket checks a bucket's tree, which may be a page inside the value itself.
func (c *pageCheck) bucket(id uint64, value []byte) error {
	if len(value) < 16 {
		return damaged("page %d has a bucket of %d bytes", id, len(value))
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return c.tree(root, nil, nil)
	}
	inline := value[16:]
	if len(inline) < pageHeader || binary.NativeEndian.Uint16(inline[8:]) != flagLeaf {
		return damaged("page %d has a bucket inside that is no leaf", id)
	}
	return c.leaf(id, inline, nil, nil)
}

// free checks the list of free pages.
func (c *pageCheck) free() error {
	b, flags, err := c.page(c.meta.freelist)
	if err != nil {
		return err
	}
	if flags != flagFreelist {
		return damaged("page %d is of kind %#x, not a list of free pages", c.meta.freelist, flags)
	}
	order := binary.NativeEndian
	ids, count := b[pageHeader:], uint64(order.Uint16(b[10:]))
	if count == 0xffff { // the number does not fit: it comes first
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return damaged("its list of free pages has %d entries, more than fit", count)
	}
	for i := range count {
		id := order.Uint64(ids[8*i:])
		if id < 2 || id >= c.meta.high || c.seen[id] {
			return damaged("page %d is said to be free, and is not", id)
		}
		c.seen[id] = true
	}
	return nil
}

// pageElements is how many elements a page has, all of which are inside.
func pageElements(id uint64, b []byte) (int, error) {
	n := int(binary.NativeEndian.Uint16(b[10:]))
	if pageHeader+n*pageElement > len(b) {
		return 0, damaged("page %d has %d elements, more than fit", id, n)
	}
	return n, nil
}

// pagePiece is a key or a value, at an offset from its element.
func pagePiece(id uint64, b []byte, element int, at, size uint64) ([]byte, error) {
	from := uint64(element) + at
	if from+size > uint64(len(b)) {
		return nil, damaged("page %d has an element that reaches beyond it", id)
	}
	return b[from : from+size], nil
}

// inOrder says whether a key comes after the one before, or the first one not before low, and before high (nil: no bound).
func inOrder(key, low, high []byte, first bool) bool {
	c := bytes.Compare(low, key)
	return (c < 0 || c == 0 && first) && (high == nil || bytes.Compare(key, high) < 0)
}
