"""The least time that a program can take on an accelerator whose limits are known."""

import jax

# bfloat16 multiply-adds on the matrix units without sparsity, in FLOP/s, and memory in bytes/s, as
# the vendors give them.
LIMITS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}


def least_seconds(compiled) -> float | None:
  """The greater of arithmetic and traffic at full speed, by the compiler's own account.

  Args:
    compiled: of jax.jit(…).lower(…).compile().

  Returns:
    None on a device that is not in the table, a CPU for one.
  """
  kind = jax.devices()[0].device_kind
  limits = next((found for name, found in LIMITS.items() if name in kind), None)
  if limits is None:
    return None
  cost = compiled.cost_analysis()
  return max(cost["flops"] / limits[0], cost["bytes accessed"] / limits[1])
