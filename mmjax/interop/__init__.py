"""Weights of other frameworks, read and written without them.

`tensors` reads and writes directories of named arrays, `torch_legacy` and `gguf` read two more formats,
`table` turns names and layouts into ours and back, and `huggingface` holds one table per model family.
"""
