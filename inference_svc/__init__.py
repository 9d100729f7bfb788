"""Serves one base model with many LoRA and X-LoRA adapters over gRPC."""
