package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The generated code that is checked in is what broker.proto gives today.
func TestGeneratedCodeIsCurrent(t *testing.T) {
	t.Parallel()
	generated, err := generate(t.Context(), "..")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"broker.pb.go", "broker_grpc.pb.go"}
	var names []string
	for name := range generated {
		names = append(names, name)
	}
	slices.Sort(names)
	if diff := cmp.Diff(want, names); diff != "" {
		t.Fatalf("generated files (-want +got):\n%s", diff)
	}
	for name, content := range generated {
		checkedIn, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(content), string(checkedIn)); diff != "" {
			t.Errorf("%s is not current, run `go generate ./broker/brokerpb` (-generated +checked in):\n%.2000s", name, diff)
		}
	}
}

// A changed file changes the code, so the test above can fail.
func TestGenerateFollowsTheSource(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before, err := os.ReadFile(filepath.Join("..", source))
	if err != nil {
		t.Fatal(err)
	}
	after := append(before, "\nmessage Extra { string name = 1; }\n"...)
	if err := os.WriteFile(filepath.Join(dir, source), after, 0o644); err != nil {
		t.Fatal(err)
	}
	request, err := compile(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	current, err := compile(t.Context(), "..")
	if err != nil {
		t.Fatal(err)
	}
	got := request.ProtoFile[len(request.ProtoFile)-1]
	want := current.ProtoFile[len(current.ProtoFile)-1]
	if len(got.MessageType) != len(want.MessageType)+1 {
		t.Errorf("messages: got %d, want one more than %d", len(got.MessageType), len(want.MessageType))
	}
}
