// Package version says which build this is. It is not the version of the API or of the repository's format.
package version

import (
	"runtime/debug"
	"time"
)

// Version is set by the linker; a build without it says so.
var Version = "development"

// Source is the commit that this was built from, "-dirty" behind it when files were changed, and the commit's time; ""
// and the zero time when the build was not told.
func Source() (commit string, at time.Time) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", time.Time{}
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.time":
			at, _ = time.Parse(time.RFC3339, s.Value)
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && commit != "" {
		commit += "-dirty"
	}
	return commit, at
}
