package hostcpu

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const statLine = "203 (CPU 0/KVM) S 1 200 200 0 -1 4194624 5 0 0 0 150 50 0 0 20 0 5 0 777 1000 50 184 1 1 0 0 0 0 0 4096 0 0 0 0 -1 0 0 0 0 120 0 0 0 0 0 0 0 0 0\n"

func TestParseThreadStat(t *testing.T) {
	t.Parallel()
	want := threadStat{comm: "CPU 0/KVM", start: 777, busy: 2 * time.Second, guest: 1200 * time.Millisecond}
	for name, test := range map[string]struct {
		line string
		comm string
	}{
		"vCPU":             {statLine, "CPU 0/KVM"},
		"parentheses":      {strings.Replace(statLine, "CPU 0/KVM", ") S (1 2", 1), ") S (1 2"},
		"newline in name":  {strings.Replace(statLine, "CPU 0/KVM", "a\nb", 1), "a\nb"},
		"no name at all":   {strings.Replace(statLine, "CPU 0/KVM", "", 1), ""},
		"fields of 20 000": {strings.TrimSpace(statLine) + " 20000 7", "CPU 0/KVM"},
	} {
		got, err := parseThreadStat([]byte(test.line))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want.comm = test.comm
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(threadStat{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, line := range map[string]string{
		"empty": "", "no name": "203 S 1", "cut": statLine[:60], "no number": strings.Replace(statLine, " 777 ", " x ", 1),
		"negative": strings.Replace(statLine, " 777 ", " -1 ", 1), "turned": "203 )x( S 1",
	} {
		if got, err := parseThreadStat([]byte(line)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestParseSchedstat(t *testing.T) {
	t.Parallel()
	if got, err := parseSchedstat([]byte("123456789 5 6\n")); err != nil || got != 123456789 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "1 2", "1 2 3 4", "x 2 3", "-1 2 3", "99999999999999999999 2 3"} {
		if got, err := parseSchedstat([]byte(bad)); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestParseCPUStat(t *testing.T) {
	t.Parallel()
	got, err := parseCPUStat([]byte("cpu  1 2 3 40 5 6 7 8 9 10\ncpu0 1 2 3 30 2 6 7 8 9 10\ncpu2 1 2 3 10 3 6 7 8 9 10\nintr 5 6\nctxt 7\n"))
	want := cpuStat{irq: 6 * tick, softirq: 7 * tick, steal: 8 * tick, idle: map[int]time.Duration{0: 32 * tick, 2: 13 * tick}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(cpuStat{})); diff != "" || err != nil {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"", "cpu  1 2 3 4 5 6 7 8\n", "cpu0 1 2 3 4 5 6 7 8\n", "cpu  1 2 3\ncpu0 1 2 3\n", "cpu  1 2 x 4 5 6 7 8\ncpu0 1 2 3 4 5 6 7 8\n",
		"cpu  1 2 3 4 5 6 7 8\ncpux 1 2 3 4 5 6 7 8\n"} {
		if got, err := parseCPUStat([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, got)
		}
	}
}

// A CPU that is idle at the moment has a spell that its sum does not hold yet;
// /proc/stat, which holds it, tells.
func TestIdleSpells(t *testing.T) {
	t.Parallel()
	const slept, now = 5 * time.Second, 9 * time.Second
	for name, test := range map[string]struct {
		cpus   []idleCPU
		coarse []time.Duration
		want   time.Duration
		known  bool
	}{
		"busy":              {[]idleCPU{{slept, 8 * time.Second}}, []time.Duration{slept}, slept, true},
		"busy, rounded":     {[]idleCPU{{slept + 9_999_999, 8 * time.Second}}, []time.Duration{slept}, slept + 9_999_999, true},
		"idle for a second": {[]idleCPU{{slept, 8 * time.Second}}, []time.Duration{slept + time.Second}, slept + time.Second, true},
		"idle for 12 ms":    {[]idleCPU{{slept, now - 12*time.Millisecond}}, []time.Duration{slept + tick}, slept + 12*time.Millisecond, true},
		"one busy, one idle": {[]idleCPU{{slept, 8 * time.Second}, {slept, 7 * time.Second}}, []time.Duration{slept, slept + 2*time.Second},
			2*slept + 2*time.Second, true},
		"began after the list": {[]idleCPU{{slept, now + 1}}, []time.Duration{slept + tick}, slept, true},
		"another CPU":          {[]idleCPU{{slept, 0}, {slept, 0}}, []time.Duration{slept}, 0, false},
	} {
		list, err := parseIdle([]byte(timerList(now.Nanoseconds(), test.cpus...)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		stat := cpuStat{idle: map[int]time.Duration{}}
		for cpu, idle := range test.coarse {
			stat.idle[cpu] = idle
		}
		if got, known := list.idle(stat); got != test.want || known != test.known {
			t.Errorf("%s: got %v, %v, want %v, %v", name, got, known, test.want, test.known)
		}
	}
	for name, bad := range map[string]string{
		"empty": "", "no CPU": "now at 5 nsecs\n", "no now": "cpu: 0\n .idle_sleeptime : 5 nsecs\n", "no head": "now at 5 nsecs\n .idle_sleeptime : 5 nsecs\n",
		"unit": "now at 5 nsecs\ncpu: 0\n .idle_sleeptime : 5 usecs\n", "number": "now at 5 nsecs\ncpu: 0\n .idle_sleeptime : -5 nsecs\n", "CPU": "now at 5 nsecs\ncpu: x\n",
		"Linux 7": "now at 5 nsecs\ncpu: 0\n  .idle_calls     : 431\n  .idle_entrytime : 4 nsecs\n", "half": "now at 5 nsecs\ncpu: 0\n .idle_sleeptime : 5 nsecs\n",
	} {
		if got, err := parseIdle([]byte(bad)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestParseCounters(t *testing.T) {
	t.Parallel()
	got, err := parseCounters([]byte("           CPU0       CPU1\n 24:          1          2  IO-APIC   5-edge      ACPI:Ged\n" +
		"NMI:          3          4   Non-maskable interrupts\nERR:          5\n      NET_RX:       1000  1\n"))
	want := []counter{{"24", "IO-APIC 5-edge ACPI:Ged", 3}, {"NMI", "Non-maskable interrupts", 7}, {"ERR", "", 5}, {"NET_RX", "", 1001}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(counter{})); diff != "" || err != nil {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"", "\n", "CPU0\nno label\n", "CPU0\n5: x\n", "CPU0\n5: -1\n", "CPU0 CPU1\n5: 9223372036854775807 1\n"} {
		if got, err := parseCounters([]byte(bad)); err == nil {
			t.Errorf("%q: got %+v, want an error", bad, got)
		}
	}
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte(statLine))
	f.Add([]byte("123 4 5\n"))
	f.Add([]byte(before()["proc/stat"]))
	f.Add([]byte(before()["proc/interrupts"]))
	f.Add([]byte(timerList(9, idleCPU{5, 8})))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parseThreadStat(data); err == nil && (s.guest < 0 || s.busy < 0) {
			t.Errorf("thread: %+v", s)
		}
		if ran, err := parseSchedstat(data); err == nil && ran < 0 {
			t.Errorf("schedstat: %v", ran)
		}
		if s, err := parseCPUStat(data); err == nil && (len(s.idle) == 0 || s.irq < 0 || s.softirq < 0 || s.steal < 0) {
			t.Errorf("stat: %+v", s)
		}
		if l, err := parseIdle(data); err == nil && (len(l.cpus) == 0 || l.now <= 0) {
			t.Errorf("timer_list: %+v", l)
		}
		if counters, err := parseCounters(data); err == nil {
			for _, c := range counters {
				if c.count < 0 {
					t.Errorf("counter: %+v", c)
				}
			}
		}
		_, _ = parseCount(data)
	})
}
