"""The Walsh-Hadamard transform of channels, as what stands for it in a tree.

At run time it rotates outliers of an activation away (QuaRot, arXiv:2404.00456), where the same matrix, which is
symmetric and its own inverse, has been multiplied into the kernels that read it.
"""

from jaxquant.numerics import nodes


@nodes.node()
class Hadamard:
  """The entry `hadamard` of an input specification (layers.inputs).

  Attributes:
    block: channels that are transformed together, a power of two that divides their number.
  """

  block: int
