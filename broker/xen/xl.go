package xen

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// cause is the errors that libxl printed, the cause first, without their places in its source; else the
// last line. The lines are "libxl: error: libxl_pci.c:1484:libxl__device_pci_add: Domain 3:…" (xtl_logger_stdio.c).
func cause(stderr string) string {
	var errs []string
	last := "it printed no error"
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		last = line
		text, ok := strings.CutPrefix(line, "libxl: error: ")
		if !ok {
			continue
		}
		if place, rest, ok := strings.Cut(text, ": "); ok && strings.Contains(place, ".c:") {
			text = rest
		}
		errs = append(errs, text)
	}
	if len(errs) == 0 {
		return printable(last)
	}
	return printable(strings.Join(errs, "; "))
}

// printable is a line that is fit for an error.
func printable(s string) string {
	const most = 500 // bytes
	s = strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// row is a line of xl list.
type row struct {
	name  string
	id    int
	state string // six places, - or r(unning) b(locked) p(aused) s(hutdown) and its reason, d(ying)
}

func (r row) paused() bool { return r.state[2] == 'p' }
func (r row) down() bool   { return r.state[3] == 's' }
func (r row) dying() bool  { return r.state[5] == 'd' }

// parseList reads what xl list prints (list_domains in tools/xl/xl_info.c): a heading, and for each
// domain name, id, memory in MiB, VCPUs, state and time in seconds. A name may have spaces.
func parseList(out []byte) ([]row, error) {
	var rows []row
	for i, line := range slices.Collect(strings.Lines(string(out))) {
		fields := strings.Fields(line)
		n := len(fields)
		switch {
		case i == 0 && n > 1 && fields[0] == "Name" && fields[1] == "ID":
			continue
		case i == 0:
			return nil, errors.New("parse xl list: its heading is not Name, ID, …")
		case n < 6:
			return nil, fmt.Errorf("parse xl list: line %d has %d columns, want 6", i+1, n)
		}
		id, err := strconv.ParseUint(fields[n-5], 10, 16)
		state := fields[n-2]
		if err != nil || len(state) != 6 || strings.Trim(state, "-rbpsrscwSd?") != "" {
			return nil, fmt.Errorf("parse xl list: line %d: id %.20q, state %.20q", i+1, fields[n-5], state)
		}
		rows = append(rows, row{name: strings.Join(fields[:n-5], " "), id: int(id), state: state})
	}
	if len(rows) == 0 {
		return nil, errors.New("parse xl list: it lists no domain, not even this one")
	}
	return rows, nil
}

// passesThrough reads what xl list -l prints of a domain: whether its configuration has Xen give it an
// IOMMU context, without which it can have no function. It has one if that says so, or if it was
// started with functions (libxl__domain_config_setdefault in libxl_create.c). Functions that it was
// started with and has no more are not in it.
func passesThrough(out []byte) (bool, error) {
	var domains []struct {
		Config *struct {
			Info struct {
				Passthrough string `json:"passthrough"` // libxl_passthrough in libxl_types.idl; the default is left out
			} `json:"c_info"`
			Functions []json.RawMessage `json:"pcidevs"`
		} `json:"config"`
	}
	if err := json.Unmarshal(out, &domains); err != nil {
		return false, fmt.Errorf("parse xl list -l: %w", err)
	}
	if len(domains) != 1 || domains[0].Config == nil {
		return false, fmt.Errorf("parse xl list -l: it has the configuration of %d domains, want one", len(domains))
	}
	config := domains[0].Config
	return slices.Contains([]string{"enabled", "sync_pt", "share_pt"}, config.Info.Passthrough) || len(config.Functions) > 0, nil
}

// parseVirtCaps takes what the machine can virtualise out of xl info. hvm_directio and pv_directio
// are there when Xen has a working IOMMU (tools/xl/xl_info.c, XEN_SYSCTL_PHYSCAP_directio).
func parseVirtCaps(out []byte) ([]string, error) {
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "virt_caps" {
			return strings.Fields(value), nil
		}
	}
	return nil, errors.New("parse xl info: it has no line virt_caps")
}
