"""The figures of a compile are read as the SDK's tutorial shows them, and nothing is lost when they look otherwise."""

from qeff_engine.sdk import perf_metrics

SAMPLE = """\
AIC WARNING: MAC estimate does not yet handle all operations
Original MAC estimate: 18446744060020916224
Original Graph operation size histogram:
output elts    op count (cumulative)
       1024                  13   2%
       2048                  15   2%
     786432                 333  64%
    3145728                 516 100%
preD32 constants size: 342228040 B
AIC HMX MAC estimate:  11173625856
AIC non-HMX MAC estimate:  0
d32 constants size: 215076032 B
final constants size: 215076032 B
VTCM0Size:   8323072 B
VTCM1Size:   8323000 B
VTCMMaxSize: 8323072 B
StaticSharedDDRSize: \t      886016 B
DynamicSharedDDRSize: \t           0 B
StaticConstantsSize: \t   215076864 B
Constants size: 215076864 (bytes)
   host: DDR traffic  read:        864 KB (first-inf        864 KB)
    c01: DDR traffic  read:      84120 KB (first-inf      84120 KB)
    c00: DDR traffic  read:      83957 KB (first-inf      83957 KB)
             constant only:      83957 KB (first-inf      83957 KB)
    c00: MC  traffic write:      83190 KB
    c00:     constant only:        244 KB
  total: DDR traffic  read:     168941 KB (first-inf     168941 KB)
  total: MC  traffic write:     166554 KB
  total:     constant only:        652 KB
  c00 barriers:          3
  c01 barriers:          4
ELF sections size: 516664 (bytes)
"""


def test_a_sample_of_the_real_compiler_is_read():
    assert perf_metrics.parse(SAMPLE.splitlines()) == {
        "hmx_macs": 11173625856,  # the other estimate is a number below zero, printed without its sign
        "other_macs": 0,
        "num_ops": 516,
        "ops_by_output_elements": [[1024, 13], [2048, 2], [786432, 318], [3145728, 183]],
        "constants_before_packing_bytes": 342228040,
        "constants_bytes": 215076032,
        "vtcm_bytes_by_core": [8323072, 8323000],
        "vtcm_max_bytes": 8323072,
        "static_shared_ddr_bytes": 886016,
        "dynamic_shared_ddr_bytes": 0,
        "static_constants_bytes": 215076864,
        "ddr_read_bytes": 168941 * 1024,
        "ddr_read_bytes_by_core": [83957 * 1024, 84120 * 1024],
        "multicast_write_bytes": 166554 * 1024,
        "multicast_write_bytes_by_core": [83190 * 1024],
        "barriers_by_core": [3, 4],
        "elf_bytes": 516664,
    }


def test_other_units_and_repetitions_are_understood_and_nonsense_is_left_out():
    lines = [
        "StaticConstantsSize: 1.5 GB",
        "StaticConstantsSize: 2 MB",
        "VTCMMaxSize = 8,323,072",
        "ELF sections size: ?",
    ]
    assert perf_metrics.parse(lines) == {"static_constants_bytes": 3 << 29, "vtcm_max_bytes": 8323072}
    assert perf_metrics.parse(["Compile started ...............", "", "VTCMMaxSize: 1.2.3 B"]) == {}
