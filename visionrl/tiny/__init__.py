"""A Qwen3-VL small enough for a laptop: random weights, a tokenizer made for the tool, built on first use."""
