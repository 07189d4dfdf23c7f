"""Settings every test shares: shapes are checked, eight virtual devices, one compilation cache."""

import os
import signal
from pathlib import Path

import flax.struct
import jax
import pytest
from jaxtyping import install_import_hook

CACHE = Path(__file__).parent.parent / ".jax_cache"

# Tests compile much and compute little: without optimisation and with the plainer of the CPU's two
# emitters a program is ready four times sooner. Processes that tests start do the same. XLA ends a process
# that names a flag it does not know; later releases are given none.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if jax.__version_info__ < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()

jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# A shell lets what it runs in the background ignore Ctrl-C; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_dataclass = flax.struct.dataclass


def unchecked_dataclass(*args, **kwargs):
    """A pytree whose fields are not checked: while JAX traces, they hold specs and shardings."""
    made = _dataclass(*args, **kwargs)
    made.__no_type_check__ = True
    return made


flax.struct.dataclass = unchecked_dataclass
install_import_hook("rewardjax", "shape_checks.check")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("REWARDJAX_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set REWARDJAX_DATA)")
    return folder
