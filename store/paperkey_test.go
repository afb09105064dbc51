package store

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"rsc.io/qr"

	"github.com/cairn-backup/cairn/internal/fault"
)

func testPaper() PaperKey {
	p := PaperKey{repository: strings.Repeat("4f", 16), name: "main", label: "safe", created: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)}
	count(p.key.secret[:], 0xf0)
	return p
}

func TestPaperKeyIsReadHoweverItIsTyped(t *testing.T) {
	p := testPaper()
	page := must(p.Text())
	lines := p.lines()
	numbered := fmt.Sprintf("4) %s\n1. %s\n\n3: %s\n2 : %s", lines[3], lines[0], lines[2], lines[1])
	tests := map[string]string{
		"page":               page,
		"page, small":        strings.ToLower(page),
		"page with CR":       strings.ReplaceAll(page, "\n", "\r\n"),
		"four lines":         strings.Join(lines, "\n"),
		"one line":           strings.Join(lines, " "),
		"any order":          numbered,
		"dashes":             strings.Join(strings.Split(strings.Join(lines, ""), ""), "-"),
		"QR code":            paperPrefix + strings.Join(lines, ""),
		"zeros as O":         strings.ReplaceAll(strings.Join(lines, "\n"), "0", "O"),
		"zeros as o":         strings.ReplaceAll(strings.Join(lines, "\n"), "0", "o"),
		"ones as l":          strings.ReplaceAll(numbered, "1", "l"),
		"ones as I":          strings.ReplaceAll(strings.Join(lines, "\n"), "1", "I"),
		"V as U":             strings.ReplaceAll(strings.Join(lines, "\n"), "V", "u"),
		"quoted in a letter": "> 1: " + lines[0] + "\n> 2: " + lines[1] + "\n> 3: " + lines[2] + "\n> 4: " + lines[3] + "\n",
	}
	for name, text := range tests {
		got, err := ParsePaperKey(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got.(PaperKey).key != p.key {
			t.Errorf("%s: another key", name)
		}
	}
}

// TestSlipsAreToldByLine puts every other character in every place of the key.
func TestSlipsAreToldByLine(t *testing.T) {
	p := testPaper()
	lines := p.lines()
	slips := 0
	for n, line := range lines {
		for at := range line {
			for _, c := range "0123456789ABCDEFGHJKMNPQRSTVWXYZ*" {
				if byte(c) == line[at] {
					continue
				}
				slips++
				bad := append([]string(nil), lines...)
				bad[n] = line[:at] + string(c) + line[at+1:]
				_, err := ParsePaperKey(strings.Join(bad, "\n"))
				meaning, _ := fault.Explanation(err)
				if fault.KindOf(err) != fault.Invalid || !strings.Contains(meaning, fmt.Sprintf("line %d ", n+1)) {
					t.Fatalf("line %d, %c at %d: %v", n+1, c, at, err)
				}
			}
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 500 { // two neighbours in the wrong order
		n, at := rnd.IntN(4), rnd.IntN(15)
		line := []byte(lines[n])
		if line[at] == line[at+1] {
			continue
		}
		line[at], line[at+1] = line[at+1], line[at]
		bad := append([]string(nil), lines...)
		bad[n] = string(line)
		slips++
		if _, err := ParsePaperKey(strings.Join(bad, "\n")); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("line %d ", n+1)) {
			t.Errorf("line %d, swapped at %d: %v", n+1, at, err)
		}
	}
	t.Logf("%d slips, each told with its line", slips)
	page := must(p.Text())
	tests := map[string]struct{ text, words string }{
		"lines in another order": {strings.Join([]string{lines[1], lines[0], lines[2], lines[3]}, "\n"), "line 1 "},
		"a line missing":         {strings.Replace(page, "    3:  ", "    x:  ", 1), "line 3 is missing"},
		"a line twice":           {strings.Replace(page, "    3:  ", "    2:  ", 1), "two lines 2"},
		"a character missing":    {strings.Replace(page, lines[2][:4]+" ", lines[2][:3]+" ", 1), "line 3 has 15"},
		"nothing":                {"", "0 characters"},
		"something else":         {"the quick brown fox", "characters"},
	}
	for name, tt := range tests {
		if _, err := ParsePaperKey(tt.text); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v, want %q", name, err, tt.words)
		}
	}
}

func TestPaperPage(t *testing.T) {
	p := testPaper()
	page := must(p.Text())
	for _, part := range []string{p.repository, "main", "2026-11-22", "safe", p.key.Fingerprint(), "cairn_reader.py"} {
		if !strings.Contains(page, part) {
			t.Errorf("the page does not have %q", part)
		}
	}
	for line := range strings.Lines(page) {
		if n := len([]rune(line)); n > 73 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	// The drawn code is, module by module, the one with the key in it.
	code := must(qr.Encode(paperPrefix+strings.Join(p.lines(), ""), qr.M))
	rows := strings.Split(strings.TrimSuffix(drawQR(code), "\n"), "\n")
	black := func(x, y int) bool {
		row := []rune(rows[(y+4)/2])
		if x+4 >= len(row) {
			return false
		}
		c := row[x+4]
		return c == '█' || (c == '▀') == ((y+4)%2 == 0) && c != ' '
	}
	for y := range code.Size {
		for x := range code.Size {
			if black(x, y) != code.Black(x, y) {
				t.Fatalf("module %d, %d is wrong", x, y)
			}
		}
	}
	if !strings.HasSuffix(page, drawQR(code)) {
		t.Error("the page does not end in the code")
	}
}

func FuzzParsePaperKey(f *testing.F) {
	p := testPaper()
	f.Add(must(p.Text()))
	f.Add(strings.Join(p.lines(), "\n"))
	for _, n := range []int{0, 1, 15, 16, 17, 63, 64, 65, 1000} {
		f.Add(strings.Repeat("0", n))
		f.Add("1: " + strings.Repeat("Z", n))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := ParsePaperKey(text); err == nil {
			if _, err := ParsePaperKey(strings.Join(got.(PaperKey).lines(), "\n")); err != nil {
				t.Error(err)
			}
		} else if fault.KindOf(err) != fault.Invalid {
			t.Error(err)
		}
	})
}
