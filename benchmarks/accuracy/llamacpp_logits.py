"""llama.cpp's own distributions, as its perplexity tool writes them: `--kl-divergence-base` without `--kl-divergence`.

The file: `_logits_`, then int32 n_ctx, n_vocab, n_chunk, the tokens, and for the positions from n_ctx / 2 on of each
chunk a row of uint16: two floats (scale and least log probability), then scale * value + least. What lies more than 16
nats below the best is not told apart. Source: `perplexity` in llama.cpp's tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAGIC = b"_logits_"


@dataclass(frozen=True, slots=True, eq=False)
class SavedLogits:
    """Positions of each text whose distributions are known: from the middle on."""

    tokens: Tensor  # int64 [num_texts, length]
    _rows: NDArray[np.uint16]  # [num_texts, num_positions, vocab_size + 4, made even]

    @property
    def num_positions(self) -> int:
        """Of each text."""
        return int(self._rows.shape[1])

    def logprobs(self, text: int, vocab_size: int) -> tuple[Tensor, Tensor]:
        """float32 [num_positions, vocab_size], and where they are known (bool): elsewhere they are smaller."""
        rows = np.ascontiguousarray(self._rows[text])
        scale, least = np.split(rows[:, :4].copy().view(np.float32), 2, axis=1)
        values = rows[:, 4 : 4 + vocab_size].astype(np.float32)
        return torch.from_numpy(values * scale + least), torch.from_numpy(values > 0)


def save_logits(binaries: Path, model: Path, text: str, num_texts: int, length: int, folder: Path) -> SavedLogits:
    """Have llama.cpp cut a text into pieces of `length` tokens and compute them.

    Raises:
        RuntimeError: it failed, or the text is too short.
    """
    source, target, log = folder / "text.txt", folder / "llama.cpp.logits", folder / "perplexity.log"
    source.write_text(text)
    program = [str(binaries / "llama-perplexity"), "-m", str(model), "-f", str(source), "-t", str(os.cpu_count())]
    program += ["-c", str(length), "-b", str(length), "--chunks", str(num_texts), "--kl-divergence-base", str(target)]
    with log.open("wb") as file:
        code = subprocess.run(
            program, stdout=file, stderr=file, env=os.environ | {"LD_LIBRARY_PATH": str(binaries)}, check=False
        ).returncode
    if code:
        raise RuntimeError(f"llama-perplexity failed with status {code}: see {log}")
    return read_logits(target, num_texts)


def read_logits(path: Path, num_texts: int) -> SavedLogits:
    """Read the file.

    Raises:
        RuntimeError: it is not such a file, or holds fewer texts.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise RuntimeError(f"{path} holds no logits of llama.cpp")
        length, vocab_size, found = np.fromfile(file, np.int32, 3).tolist()
        if found < num_texts:
            raise RuntimeError(f"llama.cpp made only {found} texts of {num_texts}: the text is too short")
        tokens = np.fromfile(file, np.int32, found * length).reshape(found, length)[:num_texts]
        width = (vocab_size + 1) // 2 * 2 + 4
        shape = (num_texts, length - 1 - length // 2, width)
        rows = np.memmap(path, np.uint16, "r", offset=file.tell(), shape=shape)
    return SavedLogits(torch.from_numpy(tokens.astype(np.int64)), rows)
