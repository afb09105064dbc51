#!/usr/bin/env bash
# Runs every campaign and writes what they print into the table of docs/reliability.md.
# scripts/reliability.sh [FILE]: FILE is the output of an earlier `go test -v` to take the lines from instead.
set -euo pipefail
cd "$(dirname "$0")/.."
page=docs/reliability.md
log=${1:-}
if [ -z "$log" ]; then
	log=$(mktemp)
	trap 'rm -f "$log" "$log.page"' EXIT
	CAIRN_LAB=1 go test -count=1 -timeout 6h -v -run '^TestCampaign|^TestCrash' ./internal/boundary ./store/... | tee "$log" | grep -E 'campaign: |^(---|FAIL|ok)' || true
	if grep -qE '^(FAIL|--- FAIL)' "$log"; then
		echo "reliability: a campaign failed; $page is left as it is" >&2
		exit 1
	fi
fi
grep -q 'campaign: ' "$log" || { echo "reliability: no campaign printed anything" >&2; exit 1; }
{
	sed '/<!-- campaigns -->/q' "$page"
	echo
	[ "${CAIRN_SOAK:-}" = 1 ] && size="soak (CAIRN_SOAK=1)" || size="CI"
	echo "Run of $(date -u +%Y-%m-%d), counts of $size, commit $(git describe --always --dirty 2>/dev/null || echo unknown):"
	echo
	echo '| campaign | injected | fired | lost | more |'
	echo '|---|---|---|---|---|'
	sed -nE 's/.*campaign: (name=.*)/\1/p' "$log" | while read -r line; do
		name='' injected='' fired='' lost='' more=''
		for pair in $line; do
			case $pair in
			name=*) name=${pair#*=} ;;
			injected=*) injected=${pair#*=} ;;
			fired=*) fired=${pair#*=} ;;
			lost=*) lost=${pair#*=} ;;
			*) more+="${more:+, }${pair/=/ }" ;;
			esac
		done
		echo "| $name | $injected | $fired | $lost | $more |"
	done
	echo
	sed -n '/<!-- end of campaigns -->/,$p' "$page"
} >"$log.page"
cat "$log.page" >"$page"
rm -f "$log.page"
echo "reliability: $(grep -c '^| [a-z]' "$page") lines in $page"
