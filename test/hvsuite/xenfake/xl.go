package xenfake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"vfbroker/broker/xen"
	"vfbroker/sriov/pci"
)

// toolWait is how long libxl waits for a guest (LIBXL_QMP_CMD_TIMEOUT, libxl__wait_for_backend).
const toolWait = 10 * time.Second

// failure is what libxl says of a failure.
type failure string

func (f failure) Error() string { return string(f) }

// XL is xl as somebody else runs it.
func (x *Xen) XL(ctx context.Context, args ...string) ([]byte, error) {
	return x.Run(ctx, nil, args...)
}

// turn is a xen.Toolstack's. It ends when it is closed and no xl that was run in it goes on.
type turn struct {
	x     *Xen
	at    xen.Place
	users int // guarded by x.mu
}

func (u *turn) Close() error {
	u.x.mu.Lock()
	defer u.x.mu.Unlock()
	if u.users--; u.users == 0 {
		<-u.x.turns[u.at]
	}
	return nil
}

// Turn implements xen.Toolstack.
func (x *Xen) Turn(ctx context.Context, at xen.Place) (io.Closer, error) {
	x.mu.Lock()
	if x.turns[at] == nil {
		x.turns[at] = make(chan struct{}, 1)
	}
	place := x.turns[at]
	x.mu.Unlock()
	select {
	case place <- struct{}{}:
		return &turn{x: x, at: at, users: 1}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", xen.ErrBusy, context.Cause(ctx))
	}
}

// Busy implements xen.Toolstack.
func (x *Xen) Busy(at xen.Place) (bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.turns[at]) > 0, nil
}

// Run implements xen.Toolstack.
func (x *Xen) Run(ctx context.Context, in io.Closer, args ...string) ([]byte, error) {
	if u, ok := in.(*turn); ok {
		x.mu.Lock()
		u.users++
		x.mu.Unlock()
		defer u.Close()
	}
	out, err := x.run(ctx, args)
	var failed failure
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("xl %s: it was stopped: %w", strings.Join(args, " "), context.Cause(ctx))
	case errors.As(err, &failed):
		return nil, &xen.ToolError{Args: args, Code: 1, Stderr: failed.Error()}
	case err != nil:
		return nil, &xen.ToolError{Args: args, Code: 1, Stderr: "xenstore: " + err.Error()}
	}
	return []byte(out), nil
}

func (x *Xen) run(ctx context.Context, args []string) (string, error) {
	if err := x.gate(ctx); err != nil {
		return "", err
	}
	fails := x.fails(args[0])
	x.mu.Lock()
	info := x.xenInfo
	if args[0] != "list" && args[0] != "info" {
		x.runs = append(x.runs, strings.Join(args, " "))
	}
	x.mu.Unlock()
	if fails {
		return "", failure("the test wants it so")
	}
	force := len(args) > 1 && args[1] == "-f"
	if force {
		args = slices.Delete(slices.Clone(args), 1, 2)
	}
	switch args[0] {
	case "list":
		if len(args) > 1 {
			return x.describe(args[2]), nil
		}
		return x.list(), nil
	case "info":
		return info, nil
	case "pci-assignable-add":
		return "", x.assignableAdd(ctx, x.addr(args[1]))
	case "pci-assignable-remove":
		return "", x.assignableRemove(ctx, x.addr(args[1]))
	}
	id, err := strconv.Atoi(args[1])
	x.mu.Lock()
	d := x.domains[id]
	x.mu.Unlock()
	switch {
	case err != nil || d == nil:
		return "", failure(args[1] + " is an invalid domain identifier (rc=-6)")
	case args[0] == "qemu-monitor-command" && args[2] == "info pci":
		return x.infoPCI(d), nil
	}
	switch args[0] {
	case "pci-attach":
		return "", x.attach(ctx, d, x.addr(args[2]))
	case "pci-detach":
		return "", x.detach(ctx, d, x.addr(args[2]), force)
	}
	x.t.Errorf("xl %q: it is not scripted", args)
	return "", failure("unknown command")
}

// fails says whether the test wants something to fail now.
func (x *Xen) fails(what string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failing[what]--
	return x.failing[what] >= 0
}

// permit lets a guest at a function's memory, or no longer (XEN_DOMCTL_iomem_permission).
func (x *Xen) permit(d *domain, addr pci.Addr, yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.access[addr] == nil {
		x.access[addr] = map[int]bool{}
	}
	x.access[addr][d.id] = yes
}

func (x *Xen) addr(text string) pci.Addr {
	addr, err := pci.ParseAddr(text)
	if err != nil {
		x.t.Error(err)
	}
	return addr
}

// gate waits while the toolstack hangs.
func (x *Xen) gate(ctx context.Context) error {
	x.mu.Lock()
	hung := x.hung
	x.mu.Unlock()
	select {
	case <-hung:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

type paceKey struct{}

// Slowly has an xl of a context take its time between two steps.
func Slowly(ctx context.Context, pace time.Duration) context.Context {
	return context.WithValue(ctx, paceKey{}, pace)
}

// between is the time between two steps of an xl, in which it may hang, or be stopped.
func (x *Xen) between(ctx context.Context) error {
	pace, ok := ctx.Value(paceKey{}).(time.Duration)
	if !ok {
		pace = step
	}
	select {
	case <-time.After(pace):
		return x.gate(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// list is xl list.
func (x *Xen) list() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	text := "Name                                        ID   Mem VCPUs\tState\tTime(s)\n" +
		"Domain-0                                     0  1500     2     r-----      94.3\n"
	for _, d := range x.domains {
		name, there := x.Store.Get(domainPath(d.id) + "/name")
		if !there {
			name = "(null)"
		}
		state := []byte("-b----")
		for i, on := range map[int]bool{2: d.paused, 3: d.down, 5: d.dying} {
			if on {
				state[i] = "  ps d"[i]
			}
		}
		if d.down {
			state[4] = 'c'
		}
		text += fmt.Sprintf("%-40s %5d %5d %5d     %s  %8.1f\n", name, d.id, 256, 1, state, 5.1)
	}
	return text
}

// describe is xl list -l of one domain, shortened.
func (x *Xen) describe(id string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	passthrough := ""
	for _, d := range x.domains {
		if strconv.Itoa(d.id) == id && d.context {
			passthrough = `"passthrough": "enabled",`
		}
	}
	return fmt.Sprintf(`[ { "domid": %s, "config": { "c_info": { "type": "pv", %s "name": "%s" }, "b_info": { "max_vcpus": 1 } } } ]`, id, passthrough, Domain)
}
