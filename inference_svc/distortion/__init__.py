"""How much quantization and fast arithmetic change what a model says: two runs of the same prompts, compared."""
