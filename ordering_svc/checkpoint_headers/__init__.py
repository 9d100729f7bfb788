"""Reads which weights a base model has and of which shapes: safetensors and GGUF headers, never the weights."""
