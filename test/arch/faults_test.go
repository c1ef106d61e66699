package arch

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

var (
	evidence = regexp.MustCompile("`([^`]*)`")
	known    = regexp.MustCompile(`^(Test[A-Za-z0-9]+|([a-z-]+/)?[a-z]+\.txtar|sim:[a-z]+|chaos:[A-Za-z]+)$`)
	faultRow = regexp.MustCompile(`(?m)^\| (\d+) \| .* \| ([^|]*)\|$`)
)

// docs/faults.md names tests, scripts and scenarios that exist, and something for each fault that can happen.
func TestFaultsAreShown(t *testing.T) {
	text, err := os.ReadFile("../../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := faultRow.FindAllStringSubmatch(string(text), -1)
	if len(rows) < 47 {
		t.Errorf("docs/faults.md has %d faults, want 47 and more", len(rows))
	}
	for _, row := range rows {
		names := evidence.FindAllStringSubmatch(row[2], -1)
		if len(names) == 0 && !strings.Contains(row[0], "cannot apply: ") {
			t.Errorf("nothing shows that fault %s is survived", row[1])
		}
		for _, name := range names {
			if !known.MatchString(name[1]) || !exists(t, name[1]) {
				t.Errorf("fault %s: there is no %s", row[1], name[1])
			}
		}
	}
}

// exists looks for a test, a script, a scenario of the simulation or a part of the chaos run.
func exists(t *testing.T, name string) bool {
	kind, what, _ := strings.Cut(name, ":")
	switch {
	case strings.HasSuffix(name, ".txtar"):
		return grep(t, "-l", "", "test/e2e/testdata/"+name, "test/e2e/testdata/lab/"+name)
	case kind == "sim":
		return grep(t, "-E", `^	+\{"`+what+`",`, "test/sim")
	case kind == "chaos":
		return grep(t, "-E", `\{"`+what+`",|^func .*`+what+`\(`, "test/chaos")
	default:
		return grep(t, "-E", "--include=*_test.go", "^func "+name+`\(`, "bench", "broker", "cmd", "guestshim", "iommu", "rdma", "sriov", "test")
	}
}

func grep(t *testing.T, args ...string) bool {
	cmd := exec.CommandContext(t.Context(), "grep", append([]string{"-rqs"}, args...)...)
	cmd.Dir = "../.."
	return cmd.Run() == nil
}
