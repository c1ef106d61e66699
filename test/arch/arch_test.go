// Package arch checks the shape of the module: who may import whom, one
// package comment each, no init functions, no package-level mutable state.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "vfbroker"

// layer says what the packages below a folder may import of this module. The
// longest matching prefix counts; ARCHITECTURE.md draws the same picture.
type layer struct {
	prefix string
	may    []string // prefixes within the module; "x/..." the folder and all below it
	leaf   bool     // and outside it nothing but std, x/sys and extra
	extra  []string
}

var leaves = []string{"sriov/pci", "sriov/sysfs", "rdma/ib", "guestshim/pingpong", "guestshim/bulk", "bench/hostcpu"}

var layers = []layer{
	{prefix: "sriov/pci", leaf: true},
	{prefix: "sriov/sysfs", may: []string{"sriov/pci"}, leaf: true},
	{prefix: "rdma/ib", may: []string{"sriov/pci"}, leaf: true},
	{prefix: "guestshim/pingpong", may: []string{"sriov/pci"}, leaf: true},
	{prefix: "guestshim/bulk", leaf: true},
	{prefix: "bench/hostcpu", may: []string{"sriov/pci"}, leaf: true, extra: []string{"github.com/prometheus/procfs"}},
	{prefix: "guestshim/xenstore", leaf: true},
	{prefix: "guestshim/xschannel", may: []string{"guestshim/xenstore"}, leaf: true},
	{prefix: "sriov", may: leaves},
	{prefix: "iommu", may: leaves},
	{prefix: "rdma", may: leaves},
	{prefix: "guestshim", may: append([]string{"guestshim/xenstore", "guestshim/xschannel", "rdma"}, leaves...)},
	{prefix: "broker/brokerpb", may: nil},
	{prefix: "broker/rpc", may: []string{"broker", "broker/brokerpb"}},
	{prefix: "broker/kvm", may: append([]string{"broker", "sriov", "iommu", "rdma", "guestshim"}, leaves...)},
	{prefix: "broker/xen", may: append([]string{"guestshim/xenstore", "guestshim/xschannel", "broker", "sriov", "iommu", "rdma", "guestshim"}, leaves...)},
	{prefix: "broker/container", may: append([]string{"broker", "sriov", "iommu", "rdma", "guestshim"}, leaves...)},
	{prefix: "broker/host", may: append([]string{"broker", "sriov", "iommu", "rdma", "guestshim"}, leaves...)},
	{prefix: "broker", may: append([]string{"sriov", "iommu", "rdma", "guestshim"}, leaves...)},
	{prefix: "bench/guest", may: append([]string{"bench/...", "guestshim/xenstore", "guestshim/xschannel", "guestshim"}, leaves...)},
	{prefix: "bench", may: append([]string{"bench/...", "broker/brokerpb", "guestshim", "rdma"}, leaves...)},
	{prefix: "cmd/vflab", may: []string{"test/lab/..."}},
	{prefix: "cmd", may: []string{"cmd/...", "sriov/...", "rdma/...", "iommu", "guestshim/...", "broker/...", "bench/..."}},
	{prefix: "test/lab", may: []string{"test/lab/..."}},
	{prefix: "test", may: []string{"..."}},
}

type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	TestFiles  []string `json:"TestGoFiles"`
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,TestGoFiles,Imports", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func layerOf(pkg string) (layer, bool) {
	best, found := layer{}, false
	for _, l := range layers {
		if (pkg == l.prefix || strings.HasPrefix(pkg, l.prefix+"/")) && len(l.prefix) >= len(best.prefix) {
			best, found = l, true
		}
	}
	return best, found
}

func (l layer) allows(imported string) bool {
	return slices.ContainsFunc(l.may, func(m string) bool {
		folder, below := strings.CutSuffix(m, "...")
		return imported == strings.TrimSuffix(folder, "/") || below && strings.HasPrefix(imported, folder) || imported == m
	})
}

func (l layer) allowsOutside(imported string) bool {
	if !l.leaf || !strings.Contains(strings.Split(imported, "/")[0], ".") || strings.HasPrefix(imported, "golang.org/x/sys/") {
		return true
	}
	return slices.ContainsFunc(l.extra, func(e string) bool { return imported == e || strings.HasPrefix(imported, e+"/") })
}

func TestImports(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		pkg := strings.TrimPrefix(p.ImportPath, module+"/")
		l, found := layerOf(pkg)
		if !found {
			t.Errorf("package %s belongs to no layer: add it to the table and to ARCHITECTURE.md", pkg)
			continue
		}
		used[l.prefix] = true
		for _, imported := range p.Imports {
			inside, ok := strings.CutPrefix(imported, module+"/")
			if ok && !l.allows(inside) || !ok && !l.allowsOutside(imported) {
				t.Errorf("%s imports %s, which its layer %s may not", pkg, imported, l.prefix)
			}
		}
	}
	for _, prefix := range []string{"sriov/pci", "sriov/sysfs", "sriov", "iommu", "rdma", "guestshim", "broker", "broker/kvm", "broker/rpc", "bench", "cmd", "test"} {
		if !used[prefix] {
			t.Errorf("layer %s has no package: the table no longer fits the tree", prefix)
		}
	}
}

// The checker itself: a rule that cannot refuse proves nothing.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		pkg, imported string
		want          bool
	}{
		{"sriov", "sriov/pci", true},
		{"sriov", "iommu", false},
		{"iommu", "sriov", false},
		{"broker", "broker/kvm", false},
		{"broker/kvm", "broker/xen", false},
		{"broker/xen", "guestshim/xenstore", true},
		{"guestshim/xenstore", "broker", false},
		{"guestshim/xenstore", "guestshim/xschannel", false},
		{"guestshim/xschannel", "guestshim/xenstore", true},
		{"guestshim/xschannel", "guestshim", false},
		{"broker/kvm", "guestshim/xschannel", false},
		{"sriov", "guestshim/xenstore", false},
		{"broker/rpc", "broker", true},
		{"broker/rpc", "sriov", false},
		{"bench/guest", "bench/hostcpu", true},
		{"bench", "broker", false},
		{"bench", "guestshim/xschannel", false},
		{"bench/guest", "guestshim/xschannel", true},
		{"cmd/vfbroker", "test/lab", false},
		{"cmd/vflab", "test/lab", true},
		{"cmd/vflab", "test/fakehost", false},
		{"test/e2e", "broker", true},
	} {
		l, _ := layerOf(tt.pkg)
		if got := l.allows(tt.imported); got != tt.want {
			t.Errorf("%s importing %s: allowed %v, want %v", tt.pkg, tt.imported, got, tt.want)
		}
	}
	if l, _ := layerOf("sriov/sysfs"); l.allowsOutside("github.com/vishvananda/netlink") || !l.allowsOutside("golang.org/x/sys/unix") || !l.allowsOutside("os") {
		t.Error("a leaf may import std and x/sys and nothing else")
	}
}

func TestFiles(t *testing.T) {
	for _, p := range packages(t) {
		set := token.NewFileSet()
		var comments []string
		files := p.GoFiles
		if len(files) == 0 {
			files = p.TestFiles // a package of tests only
		}
		for _, name := range files {
			path := filepath.Join(p.Dir, name)
			f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil && !strings.HasSuffix(name, ".pb.go") {
				comments = append(comments, name)
			}
			if strings.HasSuffix(name, ".pb.go") {
				continue
			}
			for _, problem := range problems(f) {
				t.Errorf("%s/%s: %s", p.ImportPath, name, problem)
			}
		}
		if len(comments) != 1 {
			t.Errorf("%s: %d package comments %v, want one", p.ImportPath, len(comments), comments)
		}
	}
}

// problems lists init functions and package-level variables that could change.
// Sentinel errors, compiled tables (regexps, CRC tables, literals) and interface assertions are exempt.
func problems(f *ast.File) (found []string) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name == "init" {
				found = append(found, "it has an init function")
			}
		case *ast.GenDecl:
			if d.Tok != token.VAR {
				continue
			}
			for _, s := range d.Specs {
				v := s.(*ast.ValueSpec)
				if d.Doc != nil && strings.Contains(d.Doc.Text(), "//go:embed") || embedded(d, v) {
					continue
				}
				for i, name := range v.Names {
					if name.Name != "_" && (i >= len(v.Values) || !constant(v.Values[i])) {
						found = append(found, "package-level variable "+name.Name+" can change")
					}
				}
			}
		}
	}
	return found
}

func embedded(d *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, group := range []*ast.CommentGroup{d.Doc, v.Doc} {
		if group == nil {
			continue
		}
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "//go:embed") {
				return true
			}
		}
	}
	return false
}

// makers are the functions whose results serve as constants.
var makers = []string{"errors.New", "regexp.MustCompile", "crc32.MakeTable", "template.Must", "sync.OnceValue", "sync.OnceValues", "strings.NewReplacer", "fmt.Errorf", "prometheus.NewDesc"}

func constant(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CompositeLit, *ast.BasicLit:
		return true
	case *ast.CallExpr:
		if sel, ok := e.Fun.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok {
				return slices.Contains(makers, x.Name+"."+sel.Sel.Name)
			}
		}
	case *ast.FuncLit, *ast.UnaryExpr, *ast.Ident:
		return false
	}
	return false
}

func TestProblems(t *testing.T) {
	const src = `package p
import ("errors"; "sync")
var ErrX = errors.New("x")
var table = []string{"a"}
var state int
var mu sync.Mutex
var _ I = T{}
func init() {}
`
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"package-level variable state can change", "package-level variable mu can change", "it has an init function"}
	if got := problems(f); !slices.Equal(got, want) {
		t.Errorf("problems: got %q, want %q", got, want)
	}
}

// The top level holds the fixed folders, docs, and plain files.
func TestTopLevel(t *testing.T) {
	fixed := []string{"broker", "sriov", "rdma", "iommu", "guestshim", "cmd", "bench", "test", "docs", "bin", "out"}
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		plain := name == "go.mod" || name == "go.sum" || name == "Makefile" || strings.ToUpper(strings.TrimSuffix(name, ".md")) == strings.TrimSuffix(name, ".md")
		if !strings.HasPrefix(name, ".") && !plain && !slices.Contains(fixed, name) {
			t.Errorf("%s: it belongs to no fixed folder of the top level", name)
		}
	}
	if _, err := os.Stat("../../go.mod"); errors.Is(err, fs.ErrNotExist) {
		t.Error("go.mod is missing")
	}
}
