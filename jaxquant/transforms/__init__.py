"""Quantization methods: one method, one file, the maths on arrays first. A new method is a new file here.

Rounding:
  round_to_nearest     weights to the nearest code
  gptq                 GPTQ: input by input, those to come making up for the error so far
  clip_search          narrower weight ranges where they lower the output error
  adadim               AdaDim: the axis of each kernel's groups
  grids                what a kernel is rounded to: given, or chosen by a step before
  sensitivity          what rounding each linear alone would cost: output errors, changes of the loss
  allocation           a grid for each linear, by sensitivity under a budget of bits
  knapsack             the solver of the allocation, on plain arrays
  error_feedback       the solver of GPTQ, on plain arrays
  moments              second moments of what linears read, the Hessians of their output errors

Activations:
  activation_ranges    static ranges from calibration: min-max, averages, percentiles
  dynamic_ranges       ranges of each token, taken when it comes

Equivalent scales and shifts, folded into norms and linears:
  smooth_quant         SmoothQuant
  awq                  AWQ
  aqas                 AQAS
  outlier_suppression  Outlier Suppression+
  norm_fusion          gains and biases of norms into the linears that read them
  scale_search         the search that the four share: candidates judged as they would be quantized
  folding              the fold itself

  methods              every method by its name
  recipes              the driver's steps for the usual settings
"""
