"""SmoothQuant (arXiv:2211.10438), its level O2: 8-bit activations with one dynamic range for the whole tensor.

  python -m launch.quantize --config=configs/ptq/smooth_quant_o2_w8a8.py --model=DIR --workdir=OUT

Expected: hardly above smooth_quant_w8a8, whose ranges are those of tokens. Published for OPT-175B: full precision
10.99, O1 11.11, O2 11.14; smooth_quant_o3_w8a8 has O3. Not measured here.
"""

from configs.ptq import smooth_quant_w8a8


def get_config():
  """The configuration."""
  config = smooth_quant_w8a8.get_config()
  config.activation_per_tensor = True
  return config
