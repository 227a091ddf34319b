"""Kernels in Mosaic GPU for Hopper (compute capability 9.0): products of codes on its 8-bit tensor cores.

  activations         the implementation `mosaic_gpu` of kernels.quantize_activations
  attention           the implementation `mosaic_gpu` of kernels.decode_attention
  attention_operands  what a block makes of tokens, columns and heads on their way
  attention_parts     what warpgroups and blocks that share slots pass on, and how it is put together
  cache_codes         a cache of codes: operands made in registers, a token quantized
  cache_numbers       a cache of 16-bit numbers, which instructions read as they are
  calls               the device, maps over leading axes, no derivative
  column_numbers      sums and extremes of the 8 columns of an accumulator
  configs             how products are cut
  decode              few tokens
  decode_attention    attention of single tokens
  epilogue            scales, offsets, bias, and the way to memory
  factors             scales of groups, and integers that codes depend on
  matmul              the implementation `mosaic_gpu` of kernels.quantized_matmul
  mma                 products of few tokens by instructions of single warps
  partial_sums        sums that are spread over warpgroups and runs of inputs
  prefill             many tokens
  products            operands of a product and their way into shared memory
  registers           unpacking of 4-bit weights
  results             of few tokens: gates, codes, and the way from registers to memory
  steps               operands of a step arrive, are multiplied, and make room for others
  sums                what a warpgroup sums with one scale an output or with groups
  threads             single threads and their registers
  tiles               shared memory, parameters of compilation
  token_arithmetic    a token in registers: roundings, and numbers that belong to all its features
  token_blocks        how blocks take tokens: loads of a thread, blocks that stay
  token_codes         a token in registers: its codes
  token_registers     a token in registers: where its features lie, its groups, its codes packed
  token_transform     a token in registers: its Hadamard transform, by the tensor cores
  weight_only         the implementation `mosaic_gpu` of kernels.weight_only_matmul
"""
