# Answers each line of input with the monotonic clock (ns) and the CPU time (ns) of every domain.
import gc, sys, time
sys.path.insert(0, sys.argv[1])
from xen.lowlevel.xc import xc
control = xc()
gc.disable()
print("ready", flush=True)
for _ in sys.stdin:
    domains = control.domain_getinfo()
    print(time.monotonic_ns(), *("%d:%d" % (d["domid"], d["cpu_time"]) for d in domains), flush=True)
