"""What JAX will change or drop is an error of the tests that use it, wherever in the package that is."""

import warnings

import jax
import jax.numpy as jnp
import pytest

OURS = ("qernel", "qernel.ewald", "qernel.observables.energy")


def run_in(module, source):
    """The source as if it stood in a module of the package."""
    scope = {"__name__": module, "jnp": jnp, "jax": jax, "warnings": warnings}
    exec(compile(source, f"{module}.py", "exec"), scope)


@pytest.mark.parametrize("module", OURS)
def test_an_import_that_is_deprecated(module):
    """JAX keeps this old path, and warns of it for good; the warning is the importing module's."""
    with pytest.raises(DeprecationWarning, match="shard_map"):
        run_in(module, "from jax.experimental.shard_map import shard_map")


def test_a_call_whose_warning_names_no_caller():
    """A scatter that loses digits: raised as JAX's own, without a stack level. A later JAX refuses it."""
    with pytest.raises((FutureWarning, TypeError, ValueError)) as caught:
        run_in("qernel.probe", "jnp.zeros(3, jnp.int32).at[0].set(1.5)")
    assert "scatter" in str(caught.value)


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_within_compiled_code(category):
    """While a function of the package is traced the frame above the warning is the package's still."""
    scope = {"__name__": "qernel.probe"}
    exec("def inner(x):\n    return warn(x)", scope)

    def warn(x):
        warnings.warn("going away", category, stacklevel=2)
        return x

    scope["warn"] = warn
    with pytest.raises(category, match="going away"):
        jax.jit(jax.vmap(scope["inner"]))(jnp.arange(3.0))


@pytest.mark.parametrize("module", ["qernellike", "equinox.internal", "numpy"])
def test_other_packages_may_warn(module):
    with pytest.warns(DeprecationWarning, match="going away"):
        run_in(module, "warnings.warn('going away', DeprecationWarning)")
