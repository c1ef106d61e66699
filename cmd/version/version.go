// Package version says which build of a program runs.
package version

import "runtime/debug"

// This is what the build recorded of the running program: the module's version, the revision if it was
// built in a checkout, and Go's version. "unknown": it recorded nothing.
func This() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return of(info)
}

func of(info *debug.BuildInfo) string {
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v += " " + s.Value
		}
	}
	return v + " " + info.GoVersion
}
