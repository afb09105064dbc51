package hypervisors

import "testing"

func TestShownAddress(t *testing.T) {
	for address, want := range map[string]string{
		"https://engine.example.com":                    "https://engine.example.com",
		"https://admin:s3cret@engine.example.com":       "https://admin@engine.example.com",
		"https://admin:s3:c@r/et@engine.example.com/x":  "https://admin@engine.example.com/x",
		"qemu+ssh://root:s3cret@kvm1:22/system":         "qemu+ssh://root@kvm1:22/system",
		"qemu+ssh://root@kvm1/system?keyfile=/k":        "qemu+ssh://root@kvm1/system?keyfile=/k",
		"qemu:///system":                                "qemu:///system",
		"engine":                                        "engine",
		"https://:s3cret@engine.example.com":            "https://@engine.example.com",
		"":                                              "",
		"https://admin:s3cret@engine.example.com:1%zz/": "https://admin@engine.example.com:1%zz/",
	} {
		if got := ShownAddress(address); got != want {
			t.Errorf("ShownAddress(%q) = %q, want %q", address, got, want)
		}
	}
}
