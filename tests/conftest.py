import gc
import os
from pathlib import Path

# Tests compile hundreds of small programs and run each for a moment: compile quickly rather than well. Threads as in a
# run (`devices.use_cores`): with fewer, operations were seen to wait for their parts for ever.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0", "--xla_cpu_multi_thread_eigen=false"]
)
os.environ.setdefault("NPROC", "16")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
# One device from here on, whichever test comes first: a command would make one of every core.
jax.config.update("jax_num_cpu_devices", 1)
jax.devices()


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Every compiled program takes memory maps, of which Linux allows a process 65,530: beyond that it crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
