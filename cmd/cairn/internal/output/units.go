package output

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Size writes a number of bytes for people: three digits at least, binary units.
func Size(n int64) string {
	if n < 0 {
		return "-" + Size(-n)
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := -1
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	switch {
	case v >= 1023.5 && i < len(units)-1:
		return "1.0 " + units[i+1]
	case v >= 99.95 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// ParseSize reads a number of bytes as people write it: "4096", "50M", "1.5 GiB"; units are binary.
func ParseSize(s string) (int64, error) {
	number := strings.TrimRight(strings.TrimSpace(s), "BbIiKkMmGgTtPp ")
	unit := strings.ToUpper(strings.TrimSpace(strings.TrimSpace(s)[len(number):]))
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")
	power := strings.Index("KMGTP", unit) + 1
	if unit == "" {
		power = 0
	}
	v, err := strconv.ParseFloat(number, 64)
	v *= math.Pow(1024, float64(power))
	if err != nil || len(unit) > 1 || !(v >= 0 && v < 1<<62) {
		return 0, fault.New(fault.Invalid, "", "", "%q is no size", s).Explain("", "Write a number with a unit, as 50M or 1.5G.")
	}
	return int64(v), nil
}

// SizeExact writes a size for a page about one object: rounded, and exactly beside it.
func SizeExact(n int64) string {
	if n < 1024 {
		return Size(n)
	}
	return fmt.Sprintf("%s (%d bytes)", Size(n), n)
}

// Rate writes bytes per second.
func Rate(bytesPerSecond float64) string { return Size(int64(bytesPerSecond)) + "/s" }

// Age writes how long ago t was: "12s", "5m", "3h", "6d". A zero time is "never".
func Age(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Duration writes a length of time to the second: "<1s", "4s", "3m20s", "2h05m".
func Duration(d time.Duration) string {
	if d > 0 && d < time.Second {
		return "<1s"
	}
	d = d.Round(time.Second)
	h, m, s := int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case h > 0:
		return fmt.Sprintf("%dh%02dm", h, m)
	case m > 0:
		return fmt.Sprintf("%dm%02ds", m, s)
	}
	return fmt.Sprintf("%ds", s)
}

// Time writes an instant in the given place, to the second, with its zone: who reads it may be in another one.
func Time(t time.Time, loc *time.Location) string {
	if t.IsZero() {
		return ""
	}
	return t.In(loc).Format("2006-01-02 15:04:05 MST")
}
