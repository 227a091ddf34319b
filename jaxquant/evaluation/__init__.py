"""Evaluation: what a model, and its quantized forms, are worth.

  perplexity       perplexity and bits per byte of a text, over non-overlapping windows
  precisions       the precisions of the comparison (W16A16 to W4A4) as rewrites of one tree
  outliers         outlier channels at every site, kurtosis of weights, histograms
  sentences        embeddings of texts by an encoder
  tasks            multiple choice, words to predict and answers to generate, from local files
  task_scores      accuracy and perplexity of tasks
  likelihood       how likely a continuation of a context is, what tasks score
  harness          a model for lm-evaluation-harness
  batching         texts of different lengths in batches of few shapes
  generation       a decoder goes on with texts
  arithmetic_cost  cells of a multiply-accumulate unit, a model of what a weight format costs in hardware
"""
