"""Data: from text on disk to batches of token windows on every process.

  text              documents out of plain text, JSON Lines and Parquet files, compressed or not
  standard_library  documents that every machine has: the prose inside Python's own standard library
  tokenizers        training, loading and applying a tokenizer; the tokenization that perplexity is defined on
  streaming         the text of tokens that come one after the other
  token_file        one flat, memory-mapped array of tokens, made once and reused while its sources stay the same
  loader            shuffled, seekable, sharded training batches, and windows for calibration

Nothing here knows of models or of devices: arrays are NumPy's, and a process is named by its index and their number.
"""
