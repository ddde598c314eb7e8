import os

# Tests compile hundreds of small programs and run each for a moment: compile quickly rather than well.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax

jax.config.update("jax_enable_x64", True)
