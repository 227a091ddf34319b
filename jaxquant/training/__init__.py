"""Training: quantization-aware and full-precision, resumed bit for bit after any interruption.

  qat           quantizers put into a float tree, and their ranges kept sane
  tasks         what is predicted: the next token, or hidden ones
  losses        cross entropy of predictions
  regularizers  kurtosis of layer outputs and of weights
  optimizer     AdamW in groups
  step          one training step
  trainer       the step on a mesh of devices, and the loop
  checkpoints   saved in the background; the newest and the best kept; the newest undamaged one restored
  block_store   finished blocks of a calibration, kept until it is done
  restoring     one checkpoint read and verified
  manifest      what the arrays of a checkpoint are, formats and checksums included
  checksums     32 bits per array, the same on every sharding, device and backend
  silence       what Orbax would print, kept off the terminal
  preemption    the end of a job announced by a signal, agreed on by all its processes
"""
