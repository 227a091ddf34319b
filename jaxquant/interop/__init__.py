"""Models of others: Hugging Face directories in, and out again, float or quantized. Nothing in a directory is executed.

  tensor_file  safetensors files, mapped into memory
  directory    a model directory: its configuration, its tensors by name
  families     what each architecture calls its parts: data
  configs      config.json as a TransformerConfig
  names        which tensors of a file an array of our tree is made of, and how
  slabs        arrays of a file, turned and widened as they leave the disk
  source       a directory as a tree, whole or block by block
  words        codes in 32-bit words
  matrices     a quantized kernel between their tensors and our QTensor
  compressed_tensors, gptq, awq     the formats of quantized models
  static_inputs     static ranges of activations in compressed-tensors
  quantized    what is quantized in a directory of others
  export       a tree as the tensors of a format, or why it cannot be that
  descriptions     a model that was trained here in the words of others: its config.json, its tokenizer's files
  writing      a directory that is whole or not there
  manifest     what every parameter of a quantized model is, where it comes from, and checksums
"""
