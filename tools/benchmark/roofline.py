"""Lower bound for the time of a program on an accelerator (roofline model)."""

import jax

# Vendor figures: dense bfloat16 throughput of the matrix units in FLOP/s, memory bandwidth in
# bytes/s.
LIMITS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}


def least_seconds(compiled: jax.stages.Compiled) -> float | None:
  """Returns the larger of arithmetic and memory time, from the compiler's cost analysis.

  Args:
    compiled: of jax.jit(…).lower(…).compile().

  Returns:
    Seconds, or None on a device that is not in `LIMITS`, such as a CPU.
  """
  kind = jax.devices()[0].device_kind
  limits = next((values for name, values in LIMITS.items() if name in kind), None)
  if limits is None:
    return None
  cost = compiled.cost_analysis()
  return max(cost["flops"] / limits[0], cost["bytes accessed"] / limits[1])
