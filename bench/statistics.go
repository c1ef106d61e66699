package bench

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Estimate is a figure with its interval over blocks.
type Estimate struct {
	Value    float64  `json:"value"`
	Interval Interval `json:"interval"`
}

// Interval holds the figure with 95 % by the bootstrap over blocks. With
// fewer than six blocks no interval of a median reaches that, and it is the range of the blocks.
type Interval struct {
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Blocks int     `json:"blocks"`
}

const (
	resamples  = 4000
	confidence = 0.95
	fewBlocks  = 6 // below, the range of n blocks covers their median with 1 − 2^(1−n) < 95 %
)

// estimate is the median of the blocks' values with its interval.
func estimate(blocks []float64) Estimate {
	e := Estimate{Value: median(blocks)}
	if n := len(blocks); n < fewBlocks {
		e.Interval = Interval{Low: slices.Min(blocks), High: slices.Max(blocks), Blocks: n}
		return e
	}
	e.Interval = bootstrap(func(drawn [][]float64) float64 { return median(drawn[0]) }, blocks)
	return e
}

// estimateNet is the centre of the gross values less that of the idle ones,
// with its interval; the two lists are of the same blocks.
func estimateNet(gross, idle []float64, centre func([]float64) float64) Estimate {
	e := Estimate{Value: centre(gross) - centre(idle)}
	if n := len(gross); n < fewBlocks {
		e.Interval = Interval{Low: math.Inf(1), High: math.Inf(-1), Blocks: n}
		for i := range gross {
			net := gross[i] - idle[i]
			e.Interval.Low, e.Interval.High = min(e.Interval.Low, net), max(e.Interval.High, net)
		}
		return e
	}
	e.Interval = bootstrap(func(drawn [][]float64) float64 { return centre(drawn[0]) - centre(drawn[1]) }, gross, idle)
	return e
}

// savedPercent is what the direct path saves of the bridged one.
func savedPercent(direct, bridged float64) float64 { return 100 * (1 - direct/bridged) }

// savedInterval is the interval of savedPercent over the blocks of both paths.
// They are separate samples; with few blocks it spans the worst and the best pair.
func savedInterval(direct, bridged []float64) Interval {
	if n := min(len(direct), len(bridged)); n < fewBlocks {
		return Interval{
			Low:    savedPercent(slices.Max(direct), slices.Min(bridged)),
			High:   savedPercent(slices.Min(direct), slices.Max(bridged)),
			Blocks: n,
		}
	}
	return bootstrap(func(drawn [][]float64) float64 {
		return savedPercent(median(drawn[0]), median(drawn[1]))
	}, direct, bridged)
}

// bootstrap is the percentile interval of a statistic: each sample is drawn
// anew, with replacement, from itself. The draws are the same in every run.
func bootstrap(statistic func(drawn [][]float64) float64, samples ...[]float64) Interval {
	rng := rand.New(rand.NewPCG(1, uint64(len(samples))))
	values := make([]float64, resamples)
	drawn := make([][]float64, len(samples))
	blocks := math.MaxInt
	for i, s := range samples {
		drawn[i] = make([]float64, len(s))
		blocks = min(blocks, len(s))
	}
	for i := range values {
		for j, s := range samples {
			for k := range s {
				drawn[j][k] = s[rng.IntN(len(s))]
			}
		}
		values[i] = statistic(drawn)
	}
	slices.Sort(values)
	tail := (1 - confidence) / 2
	return Interval{Low: quantile(values, tail), High: quantile(values, 1-tail), Blocks: blocks}
}

// median of a non-empty list; the list is left as it is.
func median(values []float64) float64 {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// mean of a non-empty list.
func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// quantile is the value at rank ⌈q·n⌉ of a sorted, non-empty list: always one that was measured.
func quantile[T float64 | int64](sorted []T, q float64) T {
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
