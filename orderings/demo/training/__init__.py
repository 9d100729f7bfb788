"""How the demo adapters were made: data by rule, four LoRA adapters, one X-LoRA classifier, measurements."""
