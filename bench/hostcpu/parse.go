package hostcpu

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// tick is USER_HZ, the unit in which /proc tells times: 100 a second in the
// ABI of every architecture that Go runs on (proc(5), sysconf(_SC_CLK_TCK)).
const tick = 10 * time.Millisecond

// threadStat is what is needed of /proc/<pid>/task/<tid>/stat.
type threadStat struct {
	comm  string
	busy  time.Duration // utime + stime, in ticks; guest time is part of utime
	guest time.Duration // in ticks
	start uint64        // in ticks after boot; tells a thread from a later one of the same id
}

// parseThreadStat reads the line of proc_pid_stat(5). The name stands in
// parentheses and may itself hold any character, also parentheses.
func parseThreadStat(data []byte) (threadStat, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return threadStat{}, fmt.Errorf("parse stat %.60q: no name in parentheses", data)
	}
	fields := strings.Fields(string(data[end+1:]))
	const first = 3 // number of the field after the name
	number := func(field, bits int) (uint64, error) {
		if field-first >= len(fields) {
			return 0, fmt.Errorf("parse stat %.60q: no field %d", data, field)
		}
		n, err := strconv.ParseUint(fields[field-first], 10, bits)
		if err != nil {
			return 0, fmt.Errorf("parse stat %.60q: field %d: %w", data, field, err)
		}
		return n, nil
	}
	const ofTicks = 38 // bits, which a Duration can hold
	utime, err1 := number(14, ofTicks)
	stime, err2 := number(15, ofTicks)
	start, err3 := number(22, 64)
	guest, err4 := number(43, ofTicks)
	return threadStat{
		comm:  string(data[open+1 : end]),
		busy:  ticks(utime) + ticks(stime),
		guest: ticks(guest),
		start: start,
	}, errors.Join(err1, err2, err3, err4)
}

func ticks(n uint64) time.Duration { return time.Duration(n) * tick }

// parseSchedstat reads the time that a thread has run, the first number of
// /proc/<pid>/task/<tid>/schedstat (Documentation/scheduler/sched-stats.rst).
func parseSchedstat(data []byte) (time.Duration, error) {
	fields := bytes.Fields(data)
	if len(fields) != 3 {
		return 0, fmt.Errorf("parse schedstat %.60q: want three numbers", data)
	}
	n, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("parse schedstat %.60q: %q is no time", data, fields[0])
	}
	return time.Duration(n), nil
}

// cpuStat is what is needed of /proc/stat.
type cpuStat struct {
	irq, softirq, steal time.Duration         // over all CPUs
	idle                map[int]time.Duration // of each CPU that is online, with waiting for I/O
}

// parseCPUStat reads proc_stat(5).
func parseCPUStat(data []byte) (cpuStat, error) {
	s := cpuStat{idle: make(map[int]time.Duration)}
	seen := false
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		if len(fields) < 9 {
			return cpuStat{}, fmt.Errorf("parse /proc/stat: %d fields of %.20q, want 9 or more", len(fields), fields[0])
		}
		var t [9]time.Duration
		for i := 1; i < len(t); i++ {
			n, err := strconv.ParseUint(fields[i], 10, 38)
			if err != nil {
				return cpuStat{}, fmt.Errorf("parse /proc/stat: %w", err)
			}
			t[i] = ticks(n)
		}
		if fields[0] == "cpu" {
			s.irq, s.softirq, s.steal, seen = t[6], t[7], t[8], true
			continue
		}
		cpu, err := strconv.Atoi(fields[0][len("cpu"):])
		if err != nil {
			return cpuStat{}, fmt.Errorf("parse /proc/stat: %w", err)
		}
		s.idle[cpu] = t[4] + t[5]
	}
	if !seen || len(s.idle) == 0 {
		return cpuStat{}, errors.New("parse /proc/stat: no line of cpu, or of no CPU")
	}
	return s, nil
}

// idleList is what is needed of /proc/timer_list, all in time since boot.
type idleList struct {
	now  time.Duration
	cpus map[int]idleCPU
}

// idleCPU is how long a CPU has been idle, waiting for I/O or not, and when it
// last began to be. If it still is, its sum does not hold that spell, and the file does not say whether it is.
type idleCPU struct{ slept, entered time.Duration }

// parseIdle reads the idle times of /proc/timer_list (kernel/time/timer_list.c).
// Linux 7 has none there any more, which is an error.
func parseIdle(data []byte) (idleList, error) {
	list := idleList{cpus: make(map[int]idleCPU)}
	cpu, sums := -1, 0
	for raw := range bytes.Lines(data) {
		line := strings.TrimSpace(string(raw))
		if now, ok := strings.CutPrefix(line, "now at "); ok {
			var err error
			if list.now, err = parseNsecs(now); err != nil {
				return idleList{}, err
			}
			continue
		}
		key, value, _ := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if key == "cpu" {
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return idleList{}, fmt.Errorf("parse /proc/timer_list: %.60q is no CPU", line)
			}
			cpu = n
			continue
		}
		if key != ".idle_sleeptime" && key != ".iowait_sleeptime" && key != ".idle_entrytime" {
			continue
		}
		t, err := parseNsecs(value)
		if err != nil {
			return idleList{}, err
		}
		c := list.cpus[cpu]
		if key == ".idle_entrytime" {
			c.entered = t
		} else {
			c.slept += t
			sums++
		}
		list.cpus[cpu] = c
	}
	if _, headless := list.cpus[-1]; headless || sums == 0 || sums != 2*len(list.cpus) || list.now == 0 {
		return idleList{}, errors.New("parse /proc/timer_list: no idle times of CPUs")
	}
	return list, nil
}

func parseNsecs(s string) (time.Duration, error) {
	number, unit, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(number, 10, 60)
	if err != nil || n < 0 || unit != "nsecs" {
		return 0, fmt.Errorf("parse /proc/timer_list: %.60q is no time in ns", s)
	}
	return time.Duration(n), nil
}

// idle is the idle time of all CPUs together, to the ns. That of /proc/stat,
// which holds the spell of a CPU that is idle now, tells which CPUs are: for those
// that have been for less than two ticks the spell may be missing. False: the two do not know the same CPUs.
func (l idleList) idle(stat cpuStat) (time.Duration, bool) {
	if len(l.cpus) != len(stat.idle) {
		return 0, false
	}
	var sum time.Duration
	for cpu, coarse := range stat.idle {
		c, ok := l.cpus[cpu]
		if !ok {
			return 0, false
		}
		sum += c.slept
		if coarse-c.slept >= tick && l.now > c.entered {
			sum += l.now - c.entered
		}
	}
	return sum, true
}

// counter is a line of /proc/interrupts or /proc/softirqs.
type counter struct {
	label string // IRQ number, or the kernel's abbreviation
	about string // chip and action, or what the abbreviation means
	count int64  // on all CPUs
}

// parseCounters reads the tables of /proc/interrupts and /proc/softirqs: a line
// of CPUs, then lines of a label, a number for each CPU, and text. ERR and MIS have one number.
func parseCounters(data []byte) ([]counter, error) {
	lines := bytes.Split(data, []byte("\n"))
	cpus := len(bytes.Fields(lines[0]))
	if cpus == 0 {
		return nil, errors.New("parse counters: the first line names no CPU")
	}
	var found []counter
	for _, line := range lines[1:] {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		label, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			return nil, fmt.Errorf("parse counters: %.60q has no label", line)
		}
		c := counter{label: strings.TrimSpace(label)}
		fields := strings.Fields(rest)
		i := 0
		for ; i < min(cpus, len(fields)); i++ {
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				break
			}
			if c.count += n; n < 0 || c.count < 0 {
				return nil, fmt.Errorf("parse counters: %.60q is out of range", line)
			}
		}
		if i == 0 {
			return nil, fmt.Errorf("parse counters: %.60q has no number", line)
		}
		c.about = strings.Join(fields[i:], " ")
		found = append(found, c)
	}
	return found, nil
}

// parseCount reads a file of KVM's debugfs directory: one number.
func parseCount(data []byte) (int64, error) {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse count: %w", err)
	}
	return n, nil
}
