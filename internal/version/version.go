// Package version says which build this is. It is not the version of the API or of the repository's format.
package version

// Version is set by the linker; a build without it says so.
var Version = "development"
