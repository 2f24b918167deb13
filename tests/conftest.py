"""Eight simulated CPU devices, quick compilation and a compilation cache for every test."""

import gc
import os
import tempfile
from importlib import metadata

# Before JAX is imported, and for the processes that tests start too: compiled in less than half the time.
QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")]).strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "reid_jax_test_cache"))
gc.set_threshold(100_000, 50, 50)  # tracing makes many short-lived objects
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_cpu_enable_async_dispatch", False)  # queued collective steps can deadlock
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session", autouse=True)
def parsed_flags():
    """Grain's worker processes need parsed absl flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


HEAVY = (
    *("test_properties", "test_parity", "test_direid_gan", "test_efl", "test_faults", "test_processes"),
    *("test_main", "test_rounds", "test_adl", "test_dsanet", "test_metabin", "test_mmt"),
)


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that two processes end together."""
    items.sort(key=lambda item: HEAVY.index(item.path.stem) if item.path.stem in HEAVY else len(HEAVY))
