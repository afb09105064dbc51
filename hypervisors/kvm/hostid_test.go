package kvm

import "testing"

func TestHostUUID(t *testing.T) {
	const uuid = "4c4c4544-0042-3510-8054-b7c04f4e3132"
	for name, tt := range map[string]struct {
		xml, want string
		bad       bool
	}{
		"host":    {xml: "<capabilities><host><uuid>" + uuid + "</uuid><cpu><arch>x86_64</arch></cpu></host></capabilities>", want: uuid},
		"no uuid": {xml: "<capabilities><host><cpu><arch>x86_64</arch></cpu></host></capabilities>"},
		"no XML":  {xml: "<capabilities>", bad: true},
	} {
		if got, err := hostUUID(tt.xml); got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: %q, %v, want %q", name, got, err, tt.want)
		}
	}
}
