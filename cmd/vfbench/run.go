package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vfbroker/bench"
	"vfbroker/bench/guest"
)

func newRun() *cobra.Command {
	cfg := bench.Config{Progress: progress}
	var common guest.Config
	var host hypervisor
	var paths, loads []string
	var out, html string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "measure the paths on this host, with the broker that runs on it",
		Long: `Boots a throw-away guest, has the broker lend it a VF, measures the paths, gives the VF
back and takes everything down. The two peers are NICs of this host, each alone in a network namespace
meanwhile; the uplink must be a PF without VFs.

On Xen, which is seen by itself in its control domain, there is a guest of each kind of --guests, one after
the other, under the ids NAME-pv and NAME-hvm. The bridge is in the control domain's own network.

The native path takes the last free VF of the PF, which is bound to its kernel driver meanwhile: the
broker never lends a VF that somebody else has bound.

Run it as root, with the broker's daemon running and the PF carved.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.PF == "" {
				return fmt.Errorf("%w: --pf is missing: the PF whose VFs are measured", errUsage)
			}
			var err error
			if cfg.Guests, err = host.guests(common); err != nil {
				return err
			}
			if cfg.Paths, err = parsePaths(paths); err != nil {
				return err
			}
			if cfg.Loads, err = parseLoads(loads); err != nil {
				return err
			}
			result, err := bench.Run(cmd.Context(), cfg, os.Getenv)
			if result == nil {
				return err
			}
			return errors.Join(err, write(result, out, html, cmd.OutOrStdout()), missing(result, cfg.Paths))
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Socket, "socket", "/run/vfbroker/vfbroker.sock", "the broker's socket")
	f.StringVar(&cfg.PF, "pf", "", "PF whose VFs are measured: identity, alias, netdev or PCI address")
	f.StringVar(&cfg.PeerMAC, "peer", "", "MAC of the NIC at the far end of the VFs' segment")
	f.StringVar(&cfg.UplinkMAC, "uplink", "", "MAC of the bridge's NIC")
	f.StringVar(&cfg.BridgePeer, "bridge-peer", "", "MAC of the NIC at the far end of the bridge's segment")
	f.StringSliceVar(&paths, "paths", []string{"native", "direct", "bridged"}, "what to measure")
	f.StringSliceVar(&loads, "loads", nil, "BYTES:ROUNDS:BLOCKS each (default "+strings.Join(formatLoads(bench.DefaultLoads(bench.ClockHost)), ",")+")")
	f.StringVar(&out, "json", "", "write the result to this file")
	f.StringVar(&html, "html", "", "write the report as a page to this file")
	addGuestFlags(f, &common)
	host.addFlags(f, guest.XenPV, guest.XenHVM)
	return cmd
}

// addGuestFlags adds the flags that describe a guest.
func addGuestFlags(f *pflag.FlagSet, cfg *guest.Config) {
	f.StringVar(&cfg.ID, "guest", "vfbench", "the guest's id for the broker")
	f.StringVar(&cfg.GuestsDir, "guests-dir", "/etc/vfbroker/guests", "where the broker looks for files of guests")
	f.StringVar(&cfg.Kernel, "kernel", "", "the guest's kernel (default /boot/vmlinuz-<running release>)")
	f.StringVar(&cfg.ModulesDir, "modules-dir", "", "its modules (default /lib/modules/<running release>)")
	f.StringSliceVar(&cfg.Modules, "modules", nil, "more modules that the guest loads, beside those of its buses and igbvf")
	f.StringVar(&cfg.Shim, "shim", "", "path of vfshim (default beside vfbench)")
	f.StringVar(&cfg.QEMU, "qemu", "", "path of QEMU (default /usr/bin/qemu-system-x86_64)")
	f.StringVar(&cfg.Append, "append", "", "more of the guest kernel's command line")
	f.IntVar(&cfg.MemoryMiB, "memory", 512, "the guest's memory in MiB")
	f.IntVar(&cfg.CPUs, "cpus", 1, "the guest's CPUs")
}

func parsePaths(names []string) ([]bench.PathName, error) {
	var paths []bench.PathName
	for _, name := range names {
		switch p := bench.PathName(name); p {
		case bench.Native, bench.Direct, bench.Bridged:
			paths = append(paths, p)
		default:
			return nil, fmt.Errorf("%w: path %q is none of native, direct, bridged", errUsage, name)
		}
	}
	return paths, nil
}

// parseLoads reads BYTES:ROUNDS:BLOCKS.
func parseLoads(texts []string) ([]bench.Load, error) {
	var loads []bench.Load
	for _, text := range texts {
		fields := strings.Split(text, ":")
		var n [3]int
		for i, field := range fields {
			v, err := strconv.Atoi(field)
			if len(fields) != len(n) || err != nil || v < 1 {
				return nil, fmt.Errorf("%w: load %q is not BYTES:ROUNDS:BLOCKS", errUsage, text)
			}
			n[i] = v
		}
		loads = append(loads, bench.Load{Bytes: n[0], Rounds: n[1], Blocks: n[2]})
	}
	return loads, nil
}

func formatLoads(loads []bench.Load) []string {
	var texts []string
	for _, l := range loads {
		texts = append(texts, fmt.Sprintf("%d:%d:%d", l.Bytes, l.Rounds, l.Blocks))
	}
	return texts
}

// missing is an error when a path that was asked for was not measured.
func missing(r *bench.Result, asked []bench.PathName) error {
	var reasons []string
	for _, p := range r.Paths {
		if p.Missing != "" && slices.Contains(asked, p.Name) {
			reasons = append(reasons, fmt.Sprintf("%s: %s", p.Label(), p.Missing))
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	return fmt.Errorf("not measured: %s", strings.Join(reasons, "; "))
}

// write writes the result in the forms that are wanted, the table to out.
func write(r *bench.Result, json, html string, out io.Writer) error {
	if json != "" {
		if err := writeFile(json, r.WriteJSON); err != nil {
			return err
		}
	}
	if html != "" {
		if err := writeFile(html, r.WriteHTML); err != nil {
			return err
		}
	}
	return r.WriteText(out)
}

func writeFile(path string, render func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(render(f), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
