"""The report: what a run found, as tables on the terminal and as one HTML page that opens offline.

Nothing here needs jax or matplotlib: the room reads a run's files with the standard library and numpy, so a report can
be made again later, on another machine, from the files alone.

  records         reads the files of a run; groups records into curves and bands
  tables          precision tables (variants by bit widths), mean and standard deviation over seeds, aligned text
  axes            linear and logarithmic axes, ticks and their labels
  frame           axes, grid and legend around the data of a chart; the colours
  svg             lines, points and histograms as inline SVG
  picture         a chart as a file of its own
  parts           the pieces of HTML that the page is put together from; escapes what comes from files
  sections        the charts over steps: training, outlier channels, weights, clip ranges
  decisions       the section of what calibration measured and decided
  distributions   the section of histograms
  style           the page's style sheet, light and dark
  page            `write_report(workdir)`: `report.html`, self-contained

## The files of a run

Files and fields may be missing; the page then lacks that part. A number may be null, `NaN` or `Infinity`.

`metrics.jsonl` holds one object a line. All have `kind`, `step` and, where a run has several, `variant` (text) and
`seed` (integer). When a resumed run writes a step again, the later line counts.

  train       loss, cross_entropy (nats per token), kurtosis (mean over sites), learning_rate, gradient_norm,
              tokens_per_second, eta_seconds, memory_bytes
  validation  cross_entropy, perplexity
  site        site (a path such as `layers/3/attention/input`), reads_residual (bool), peak_ratio (largest mean |x|
              of a channel over that of the median channel), absolute_maximum, kurtosis (mean over tokens),
              outlier_channels (count); on steps spaced evenly in their logarithm
  weight      path, kurtosis, absolute_maximum
  range       path, low, high (the learned clip range)
  block       path of a block that a quantization finished ('' for what follows the layers), work (what was done, or
              'restored'), seconds, errors ({method: {field: mean over the block}}); steps count blocks

`results.json` is one object:

  evaluations      [{variant, seed, dataset, weights, activations (bits; 16 or more is floating point),
                   activation_mode ('none', 'static', 'dynamic'), values, keys (bits of attention's, where they are
                   quantized), method ('none', 'rtn', 'gptq', ...), of a sweep
                   row (its name; none of the model as it is), and of a text
                   perplexity, bits_per_byte, tokens; of a task accuracy, accuracy_error, examples, and
                   normalized_accuracy or perplexity}]
  histograms       [{variant, seed, path, quantity ('weight', 'activation'), stage ('before', 'after'),
                   edges (n + 1 numbers), counts (n)}]
  outlier_summary  [records like kind `site`, measured at the end]; without it the last `site` records stand in
  runs             [{variant, seed, steps, tokens, seconds (of steps, however often the run was resumed),
                   tokens_per_second, checkpoint}]
  environment      {device, device_count, and any versions}
  seconds          duration of all launches that came to a result
  decisions        of a sweep, by row, what `decisions.json` has

`decisions.json`, of a quantization, is one object: {path of a linear or site: {method: {field: number}}}.

`config.json` is the resolved configuration, of any shape; its `name`, if it has one, is the page's title.
"""
