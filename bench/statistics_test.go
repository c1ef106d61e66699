package bench

import (
	"math/rand/v2"
	"testing"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	sorted := []int64{10, 20, 30, 40, 50, 60, 70, 80, 90, 100}
	for _, tt := range []struct {
		q    float64
		want int64
	}{{0, 10}, {0.1, 10}, {0.11, 20}, {0.5, 50}, {0.9, 90}, {0.99, 100}, {1, 100}} {
		if got := quantile(sorted, tt.q); got != tt.want {
			t.Errorf("quantile %v = %v, want %v", tt.q, got, tt.want)
		}
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{4, 2}, 3}, {[]float64{9, 1, 5}, 5}} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median %v = %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestFewBlocksGiveTheirRange(t *testing.T) {
	t.Parallel()
	e := estimate([]float64{5, 1, 3})
	if e.Value != 3 || e.Interval != (Interval{Low: 1, High: 5, Blocks: 3}) {
		t.Errorf("estimate %+v", e)
	}
	iv := savedInterval([]float64{100, 120}, []float64{200, 240})
	if iv.Low != 40 || iv.High <= 58 || iv.Blocks != 2 {
		t.Errorf("interval %+v", iv)
	}
}

// TestCoverage is the harness's own test: an A/A run must show no saving, and
// a known difference must be found, in about 95 of 100 runs.
func TestCoverage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		direct, bridged float64
		saved           float64
	}{{"the same path twice", 100, 100, 0}, {"a known difference", 127, 220, 100 * (1 - 127.0/220)}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			held := 0
			for seed := range uint64(100) {
				rng := rand.New(rand.NewPCG(seed, 2))
				draw := func(mean float64) []float64 {
					blocks := make([]float64, 12)
					for i := range blocks {
						blocks[i] = mean * (1 + 0.01*rng.NormFloat64())
					}
					return blocks
				}
				iv := savedInterval(draw(tt.direct), draw(tt.bridged))
				if iv.Low <= tt.saved && tt.saved <= iv.High {
					held++
				}
			}
			if held < 88 {
				t.Errorf("the interval held the truth in %d of 100 runs", held)
			}
		})
	}
}

func TestNet(t *testing.T) {
	t.Parallel()
	// Once, in an idle block, the host did something else.
	gross, idle := []float64{10, 11, 10, 12, 10, 10}, []float64{1, 1, 60, 1, 1, 1}
	if e := estimateNet(gross, idle, median); e.Value != 9 || e.Interval.Low > 9 || e.Interval.High < 9 {
		t.Errorf("net %+v, want 9", e)
	}
	if e := estimateNet(gross[:2], idle[:2], mean); e.Value != 9.5 || e.Interval != (Interval{Low: 9, High: 10, Blocks: 2}) {
		t.Errorf("net of few blocks %+v", e)
	}
}
