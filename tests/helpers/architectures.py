"""The kinds of decoder that the tests run on."""

ARCHITECTURES = ["llama", "llama-untied", "mistral", "qwen2", "qwen3", "gpt-neox", "gemma2", "gemma3"]
"""Every decoder-only kind that ``tiny_base`` writes. gemma2 and gemma3 mix sliding and global layers, mistral only has
sliding ones, all with a window of :data:`WINDOW`; gemma2 caps its logits; llama-untied and gpt-neox have a head of
their own."""

WINDOW = 6
