"""LoRA and X-LoRA: files to banks of matrices, and who holds which."""
