"""SLAC (arXiv:2311.05161, section 3.2): AQAS calibrated on sequences as long as those of the task.

  python -m launch.quantize --config=configs/ptq/slac_w4a8.py:128 --model=DIR --workdir=OUT

The number is the length of the calibration windows; their count keeps the tokens the same as 128 windows of 2,048. The
sweep, with every result scored on texts at the same lengths and on tasks, is configs/sweeps/slac.py.

A length above the model's own is refused. Any other configuration is swept with --config.calibration_length=64
--config.calibration_windows=4096 and so on. Expected: worse where calibration is shorter than the texts, on OPT-like
models by 0.2 to 0.5 % or, on one of three, by 4 to 50 %; where it is longer, the same to 0.2 %; with positions that are
relative, as those of LLaMA-like models, the same at any length (docs/results.md). Published for LLaMA-7B, average of
common-sense tasks, lengths 64, 128, 512 and 2,048: 69.99, 70.48, 68.92, 70.20 with AQAS and GPTQ, 68.14, 69.89, 65.96,
65.19 with GPTQ alone, full precision 70.92.
"""

from configs.ptq import aqas_w4a8


def get_config(length: str = '128'):
  """The configuration for calibration windows of `length` tokens."""
  config = aqas_w4a8.get_config()
  config.calibration_length = int(length)
  config.calibration_windows = 128 * 2048 // int(length)
  return config
