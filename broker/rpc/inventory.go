package rpc

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"vfbroker/broker"
	pb "vfbroker/broker/brokerpb"
)

// inventoryPage is a part of the inventory at a revision of the broker's. Calls
// share it and none changes it, so that whoever asks again and again while nothing happens is answered at once.
type inventoryPage struct {
	asked    inventoryKey
	revision uint64
	pfs      []broker.PFView
	vfs      []listedVFs // of each of pfs
	next     string
}

// listedVFs are the messages of a PF's VFs, and the field that holds them as it goes out.
type listedVFs struct {
	messages []*pb.VF
	encoded  func() ([]byte, error)
}

func listVFs(views []broker.VFView) listedVFs {
	messages := vfProtos(views)
	return listedVFs{messages, sync.OnceValues(func() ([]byte, error) { return proto.Marshal(&pb.PF{Vfs: messages}) })}
}

// encodeIn puts the VFs in the PF's message as they were encoded before, unless they were described: to
// encode them is most of what an answer costs. Nothing on the wire tells these bytes from a field that is encoded with its
// message, and fields may come in any order (https://protobuf.dev/programming-guides/encoding, "Field Order"). In
// this process the message has no VFs from here on.
func (l listedVFs) encodeIn(pf *pb.PF) error {
	if len(pf.Vfs) == 0 || len(pf.Vfs) != len(l.messages) || &pf.Vfs[0] != &l.messages[0] {
		return nil
	}
	encoded, err := l.encoded()
	if err != nil {
		return fmt.Errorf("encode VFs of PF %s: %w", pf.Id, err)
	}
	pf.Vfs = nil
	pf.ProtoReflect().SetUnknown(encoded)
	return nil
}

// inventoryKey is all that an answer depends on, beside the revision.
type inventoryKey struct {
	caller    broker.Caller
	pf, token string
	size      int32
}

func (s *service) Inventory(ctx context.Context, r *pb.InventoryRequest) (*pb.InventoryResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	page, err := s.inventoryPage(inventoryKey{caller, r.Pf, r.PageToken, r.PageSize})
	if err != nil {
		return nil, err
	}
	out := &pb.InventoryResponse{NextPageToken: page.next, Pfs: make([]*pb.PF, len(page.pfs))}
	for i, view := range page.pfs {
		out.Pfs[i] = pfProto(view, page.vfs[i].messages)
		s.describe(view, out.Pfs[i])
		if err := page.vfs[i].encodeIn(out.Pfs[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// inventoryPage returns the page that was asked for last if that is still what the broker has, else a new one.
func (s *service) inventoryPage(asked inventoryKey) (*inventoryPage, error) {
	revision := s.broker.Revision() // before the list, which may be newer then and never older
	if last := s.listed.Load(); last != nil && last.asked == asked && last.revision == revision {
		return last, nil
	}
	pfs, next, err := s.listInventory(asked)
	if err != nil {
		return nil, err
	}
	page := &inventoryPage{asked: asked, revision: revision, pfs: pfs, next: next, vfs: make([]listedVFs, len(pfs))}
	for i := range pfs {
		page.vfs[i] = listVFs(pfs[i].VFs)
	}
	s.listed.Store(page)
	return page, nil
}

// maxPageVFs is about how many VFs one answer holds; a VF is some 150 bytes,
// and a client takes 4 MiB by default.
const maxPageVFs = 8192

// listInventory asks the broker, for a shorter page than was asked for when its PFs have very many VFs.
func (s *service) listInventory(asked inventoryKey) ([]broker.PFView, string, error) {
	page := broker.Page{Size: int(asked.size), Token: asked.token}
	for {
		pfs, next, err := s.broker.Inventory(asked.caller, asked.pf, page)
		vfs := 0
		for _, p := range pfs {
			vfs += len(p.VFs)
		}
		if err != nil || vfs <= maxPageVFs || len(pfs) == 1 {
			return pfs, next, err
		}
		page.Size = len(pfs) / 2
	}
}
