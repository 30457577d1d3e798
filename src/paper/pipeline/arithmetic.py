"""The same bytes on every processor: what the numerical libraries are told before they are loaded.

Left alone, they choose instructions by the processor and split sums by its number of cores; each choice rounds in
another way, and training makes another network of that. `arithmetic: portable` fixes what every x86-64 processor with
AVX2 has; the thread count is fixed because it decides where a sum is split, not because more would be of no use.
"""

import os
import platform

THREADS = "2"
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "COMPATIBLE",  # matrix products, exp and log: the one mode that Intel's library has on all makers' CPUs
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's and scipy's matrix products
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OMP_NUM_THREADS": THREADS,
    "MKL_NUM_THREADS": THREADS,
    "OPENBLAS_NUM_THREADS": THREADS,
    "OMP_DYNAMIC": "false",  # that many threads on one core, too
    "MKL_DYNAMIC": "false",
    # Not arithmetic (docs/portability.md): a thread that waits gives its core away soon, for what else runs on the
    # machine, and memory that was freed is kept for the next step: handing it back costs millions of page faults.
    "GOMP_SPINCOUNT": "10000",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_ARENA_MAX": "1",  # a worker's thread, too
}


def choose(arithmetic: str) -> None:
    """Set the environment of this process, and of those that it starts, for "portable" or "native" arithmetic.

    It comes before the import of torch and numpy. With "native", and on other processors than x86-64, nothing is set.
    """
    if arithmetic == "portable" and platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.update(PORTABLE)
