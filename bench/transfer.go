package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"vfbroker/guestshim/bulk"
)

// bulkBytes is how much a path carries each way to show that it carries it whole.
const bulkBytes = 4 << 20

// bulkPort is the TCP port of the far end.
const bulkPort = 5001

// Bulk is a checksummed transfer over a path, both ways one after the other.
type Bulk struct {
	Bytes    int64 `json:"bytes"`     // each way
	SHA256OK bool  `json:"sha256_ok"` // both ends had the same, both ways
}

// ErrCorrupted: a path carried something else than it was given.
var ErrCorrupted = errors.New("SHA-256 at the two ends differ: do not trust this host's figures, nor its data")

// transfer makes the transfer of a path. The far end is a process of its own, as long as it takes: the one that
// sends messages back does nothing else.
func (r *run) transfer(ctx context.Context, e *endpoint) (*Bulk, error) {
	ctx, cancel := context.WithTimeout(ctx, bulkTimeout)
	defer cancel()
	addr := netip.AddrPortFrom(e.far.addr.Addr(), bulkPort)
	child, err := runSelf(ctx, e.far.ns, "serve", "--bulk", addr.String())
	if err != nil {
		return nil, fmt.Errorf("transfer over %s: %w", e.path, err)
	}
	defer child.Stop()
	got, err := e.client.Bulk(ctx, bulk.Spec{Peer: addr, Bytes: bulkBytes})
	if err != nil {
		return nil, fmt.Errorf("transfer over %s: %w", e.path, err)
	}
	b := &Bulk{Bytes: bulkBytes, SHA256OK: got.SentOK && got.ReceivedOK}
	r.cfg.Progress("%s: %d MiB each way, SHA-256 of both ends equal: %v", e.path, bulkBytes>>20, b.SHA256OK)
	return b, nil
}

// checkBulk is ErrCorrupted for the paths that carried something else than they were given.
func (r *Result) checkBulk() error {
	var errs []error
	for _, p := range r.Paths {
		if p.Bulk != nil && !p.Bulk.SHA256OK {
			errs = append(errs, fmt.Errorf("transfer %d bytes each way over %s: %w", p.Bulk.Bytes, p.Label(), ErrCorrupted))
		}
	}
	return errors.Join(errs...)
}
