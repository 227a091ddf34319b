"""Launchers: flags in, library calls, files out.

  train            trains variants of a model, quantizes and evaluates them, and writes the report
  quantize         quantizes a trained model
  evaluate         scores a text with a model
  generate         goes on with a prompt, on the terminal
  benchmark        measures speed
  settings         every key of the configurations, with its default
  runtime          flags, errors and exit codes, devices
  quantize_config  what a configuration of `quantize` asks for, whatever the model
  quantization     how a float model is quantized for the comparison
  calibration      what models are calibrated on
  mixed_precision  a grid for each linear as a configuration asks for it
  workdir          the files a run leaves
  progress         lines, bar and tables on the terminal
  corpora          texts and tokenizers as a configuration names them
"""
