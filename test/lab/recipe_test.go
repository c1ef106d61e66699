package lab

import (
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRecipeHash(t *testing.T) {
	t.Parallel()
	hash := func(change func(*Recipe)) string {
		t.Helper()
		r := DefaultRecipe()
		r.Packages, r.Kernels = slices.Clone(r.Packages), slices.Clone(r.Kernels)
		change(&r)
		h, err := r.Hash()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	base := hash(func(*Recipe) {})
	if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(base) {
		t.Errorf("hash %q, want 16 hexadecimal digits", base)
	}
	if got := hash(func(r *Recipe) { slices.Reverse(r.Packages) }); got != base {
		t.Errorf("hash depends on the order of packages: %s, %s", got, base)
	}
	seen := map[string]string{base: "the default"}
	for name, change := range map[string]func(*Recipe){
		"suite":         func(r *Recipe) { r.Suite = "forky" },
		"package":       func(r *Recipe) { r.Packages = append(r.Packages, "tcpdump") },
		"kernel suite":  func(r *Recipe) { r.Kernels[0].Suite = "forky" },
		"kernel name":   func(r *Recipe) { r.Kernels[0].Name = "other" },
		"kernel order":  func(r *Recipe) { slices.Reverse(r.Kernels) },
		"initrd module": func(r *Recipe) { r.InitrdModules = []string{"9p"} },
		"Xen":           func(r *Recipe) { r.Xen = "4.17" },
		"dom0 module":   func(r *Recipe) { r.Dom0Modules = nil },
		"format":        func(r *Recipe) { r.Format++ },
	} {
		h := hash(change)
		if other, ok := seen[h]; ok {
			t.Errorf("changing the %s gives the same hash as %s", name, other)
		}
		seen[h] = name
	}
}

func TestRecipeSuites(t *testing.T) {
	t.Parallel()
	got := DefaultRecipe().suites()
	if diff := cmp.Diff([]string{"trixie", "trixie-backports"}, got); diff != "" {
		t.Errorf("suites (-want +got):\n%s", diff)
	}
}
