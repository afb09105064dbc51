package policy

import (
	"testing"
	"time"
)

func TestNeverBegins(t *testing.T) {
	night := []string{"22:00-06:00"}
	tests := map[string]struct {
		spec Spec
		want bool
	}{
		"no window":                      {Spec{Schedule: "12:00", Missed: MissedSkip}, false},
		"in the window":                  {Spec{Schedule: "23:00", Missed: MissedSkip, Windows: night}, false},
		"never in it":                    {Spec{Schedule: "12:00", Missed: MissedSkip, Windows: night}, true},
		"never in it, but caught up":     {Spec{Schedule: "12:00", Windows: night}, false},
		"just before it":                 {Spec{Schedule: "21:00", Missed: MissedSkip, Windows: night}, false},
		"too long before it":             {Spec{Schedule: "20:59", Missed: MissedSkip, Windows: night}, true},
		"long before, and may wait":      {Spec{Schedule: "12:00", Missed: MissedSkip, Within: 10 * 3600, Windows: night}, false},
		"each minute, rarely open":       {Spec{Schedule: "*:0/1", Missed: MissedSkip, Windows: []string{"Sat 10:00-10:01"}}, false},
		"on other days":                  {Spec{Schedule: "Mon 12:00", Missed: MissedSkip, Windows: []string{"Sat 00:00-24:00"}}, true},
		"sometimes on that day":          {Spec{Schedule: "*-*-01 12:00", Missed: MissedSkip, Windows: []string{"Sat 00:00-24:00"}}, false},
		"yearly, on a day that comes by": {Spec{Schedule: "*-02-29 12:00", Missed: MissedSkip, Windows: []string{"Sat 00:00-24:00"}}, false},
		"a whole day":                    {Spec{Schedule: "12:00", Missed: MissedSkip, Windows: []string{"22:00-22:00"}}, false},
		"over, and was in it":            {Spec{Schedule: "2020-01-01 12:00", Missed: MissedSkip, Windows: night}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.spec.Filter = "all"
			r, err := Understand(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.NeverBegins(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
