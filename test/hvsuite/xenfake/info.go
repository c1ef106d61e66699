package xenfake

import "strings"

// info is what xl info prints, shortened.
const info = `host                   : lab
release                : 6.12.107
machine                : x86_64
nr_cpus                : 2
max_cpu_id             : 1
cores_per_socket       : 1
threads_per_core       : 1
cpu_mhz                : 2400.000
hw_caps                : 178bfbff:f7fa3223:2c100800:00000121:00000000:00000000:00000000:00000000
virt_caps              : pv hvm hvm_directio pv_directio hap shadow iommu_hap_pt_share gnttab-v1 gnttab-v2
total_memory           : 4095
free_memory            : 2480
free_cpus              : 0
xen_major              : 4
xen_minor              : 20
xen_commandline        : console=com1 com1=115200,8n1 iommu=verbose,force
xend_config_format     : 4
`

// infoWithoutIOMMU is the same of a Xen without a working IOMMU.
func infoWithoutIOMMU() string {
	return strings.NewReplacer(" hvm_directio pv_directio", "", " iommu_hap_pt_share", "").Replace(info)
}
