package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
)

// A metric is a file of fixed size as Graphite's carbon keeps it: a head, then rings of points of 12 bytes (time and
// value, big-endian), which are overwritten in place, a little of each file every day.
const (
	metrics          = "var/lib/graphite/whisper/"
	metricHead       = 40
	metricPoint      = 12
	metricEpoch      = 1767225600 // midnight before day 1
	secondsPerDay    = 86400
	metricsPerFolder = 40
)

// metricRings are one point a minute for a week and one in ten minutes for a year.
var metricRings = []struct{ step, points int64 }{{60, 7 * 1440}, {600, 365 * 144}}

func metricName(i int) string {
	return fmt.Sprintf("%shost%03d/m%02d.wsp", metrics, i/metricsPerFolder, i%metricsPerFolder)
}

// makeMetrics makes files with rings that are full.
func (w *world) makeMetrics(n int) error {
	for i := range n {
		name, p := metricName(i), metricHeader()
		for _, r := range metricRings {
			now := int64(metricEpoch + w.day*secondsPerDay)
			ring := make([]byte, r.points*metricPoint)
			w.points(ring, now-r.step*r.points, r.step, r.points)
			p = append(p, ring...)
		}
		if err := w.write(name, p); err != nil {
			return err
		}
	}
	return nil
}

func metricHeader() []byte {
	be := binary.BigEndian
	p := be.AppendUint32(nil, 1) // values are averages
	p = be.AppendUint32(p, uint32(metricRings[1].step*metricRings[1].points))
	p = be.AppendUint32(p, math.Float32bits(0.5))
	p = be.AppendUint32(p, uint32(len(metricRings)))
	at := uint32(metricHead)
	for _, r := range metricRings {
		for _, v := range []uint32{at, uint32(r.step), uint32(r.points)} {
			p = be.AppendUint32(p, v)
		}
		at += uint32(r.points * metricPoint)
	}
	return p
}

// points puts n points that begin after a time where they belong in a ring: values that wander, with two digits.
func (w *world) points(ring []byte, after, step, n int64) {
	value, swing := 1000*w.rng.Float64(), 1+20*w.rng.Float64()
	for i := range n {
		value = math.Abs(value + swing*(w.rng.Float64()-0.5))
		at := after + (i+1)*step
		slot := ring[at/step%(int64(len(ring))/metricPoint)*metricPoint:]
		binary.BigEndian.PutUint32(slot, uint32(at))
		binary.BigEndian.PutUint64(slot[4:], math.Float64bits(math.Round(value*100)/100))
	}
}

// updateMetrics writes a day's points into every file.
func (w *world) updateMetrics(n int) error {
	for i := range n {
		if err := w.updateMetric(metricName(i)); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) updateMetric(name string) (err error) {
	f, err := w.root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	at := int64(metricHead)
	for _, r := range metricRings {
		ring, n := make([]byte, r.points*metricPoint), int64(secondsPerDay)/r.step
		after := int64(metricEpoch + (w.day-1)*secondsPerDay)
		w.points(ring, after, r.step, n)
		for i := (after/r.step + 1) % r.points; n > 0; i = 0 { // a day may go beyond the ring's end
			part := min(n, r.points-i)
			if _, err := f.WriteAt(ring[i*metricPoint:(i+part)*metricPoint], at+i*metricPoint); err != nil {
				return err
			}
			n -= part
		}
		at += r.points * metricPoint
	}
	return nil
}
