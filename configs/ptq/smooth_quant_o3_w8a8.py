"""SmoothQuant (arXiv:2211.10438), its level O3: 8-bit activations with one static range for the whole tensor.

  python -m launch.quantize --config=configs/ptq/smooth_quant_o3_w8a8.py --model=DIR --workdir=OUT

Expected: hardly above smooth_quant_o2_w8a8, whose ranges are those of each batch. Published for OPT-175B: full
precision 10.99, O1 11.11, O2 11.14, O3 11.17. Measured here with asymmetric ranges and a scale an output: at 8 bits it
makes up for half of the 0.5 % that static ranges lose of an OPT-like model, and at 6 for half of more
(docs/results.md).
"""

from configs.ptq import smooth_quant_w8a8


def get_config():
  """The configuration."""
  config = smooth_quant_w8a8.get_config()
  config.update(activation_mode='static', activation_kind='uint', symmetric_ranges=True)
  return config
