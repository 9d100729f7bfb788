"""X-LoRA scalings as arrays: put together from the stream, and kept in `.npz` files with the tokens they belong to."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loramux.client.errors import broken_answer, invalid_argument
from loramux.inference.v1 import generation_pb2

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Scalings:
    """Weights that an X-LoRA classifier gave its adapters.

    `values` is float32 [tokens, layers, adapters]; layers is 1 where the mean over layers was asked for. Row 0 is the
    position `first_position` (0: the first prompt token). `experts` names the last axis.
    """

    values: FloatArray
    experts: tuple[str, ...]
    first_position: int


@dataclass(frozen=True, slots=True, eq=False)
class ScalingsRecord:
    """Scalings and the tokens they belong to: what `loramux scalings plot` draws.

    `values` is float32 [tokens, layers, adapters]; `token_ids` and `token_texts` have one entry a token, of which the
    first `prompt_tokens` belong to the prompt.
    """

    values: FloatArray
    experts: tuple[str, ...]
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    prompt_tokens: int

    def entropy(self) -> FloatArray:
        """How evenly the adapters are used, float32 [tokens, layers]: 1 is all alike, 0 is one alone.

        The Shannon entropy of each token's and layer's shares (absolute scalings over their sum), divided by that of
        equal shares. NaN where all scalings are 0; 0 for a mixture of one adapter.
        """
        sizes = np.abs(self.values)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = sizes / sizes.sum(axis=-1, keepdims=True)
            terms = np.where(shares > 0, -shares * np.log(np.where(shares > 0, shares, 1)), shares * 0)
        count = self.values.shape[2]
        return np.asarray(terms.sum(axis=-1) / np.log(count) if count > 1 else terms.sum(axis=-1), dtype=np.float32)

    def save(self, path: Path | str) -> None:
        """Writes an `.npz` file, under exactly this name. Raises OSError."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            values=self.values,
            experts=np.array(self.experts, dtype=np.str_),
            token_ids=np.array(self.token_ids, dtype=np.uint32),
            token_texts=np.array(self.token_texts, dtype=np.str_),
            prompt_tokens=np.array(self.prompt_tokens, dtype=np.int64),
        )
        Path(path).write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path | str) -> ScalingsRecord:
        """Reads what `save` wrote. Raises OSError, and InvalidArgument if the file is something else."""
        data = Path(path).read_bytes()
        try:
            # Never unpickle: the file may come from anywhere.
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                record = cls(
                    values=np.asarray(file["values"], dtype=np.float32),
                    experts=tuple(str(name) for name in file["experts"]),
                    token_ids=tuple(int(token) for token in file["token_ids"]),
                    token_texts=tuple(str(text) for text in file["token_texts"]),
                    prompt_tokens=int(file["prompt_tokens"]),
                )
        except (KeyError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise invalid_argument(str(path), f"is not a file of scalings ({error})") from error
        tokens = record.values.shape[0] if record.values.ndim == 3 else -1
        if record.values.ndim != 3 or not tokens == len(record.token_ids) == len(record.token_texts):
            raise invalid_argument(str(path), f"holds {record.values.shape} values for {len(record.token_ids)} tokens")
        if record.values.shape[2] != len(record.experts):
            raise invalid_argument(
                str(path), f"holds {record.values.shape[2]} adapters, but {len(record.experts)} names"
            )
        return record


def join_scalings(chunks: Sequence[generation_pb2.Scalings], experts: tuple[str, ...]) -> Scalings | None:
    """Puts the pieces of a stream together by position; a position that came twice keeps its last values.

    Raises Internal if positions are missing, or the sizes contradict each other.
    """
    if not chunks:
        return None
    layers, adapters = chunks[0].num_layers, chunks[0].num_adapters
    first = min(chunk.first_position for chunk in chunks)
    end = max(chunk.first_position + chunk.num_tokens for chunk in chunks)
    if adapters != len(experts):
        raise broken_answer(f"the service sent scalings of {adapters} adapters, but named {len(experts)}")
    values = np.zeros((end - first, layers, adapters), dtype=np.float32)
    seen = np.zeros(end - first, dtype=np.bool_)
    for chunk in chunks:
        shape = (chunk.num_tokens, layers, adapters)
        dtype = np.dtype("<f2" if chunk.type == generation_pb2.SCALINGS_TYPE_FLOAT16 else "<f4")
        size = dtype.itemsize * int(np.prod(shape))
        if (chunk.num_layers, chunk.num_adapters) != (layers, adapters) or len(chunk.values) != size:
            raise broken_answer(f"the service sent {len(chunk.values)} bytes of scalings for the shape {shape}")
        start = chunk.first_position - first
        values[start : start + chunk.num_tokens] = np.frombuffer(chunk.values, dtype=dtype).reshape(shape)
        seen[start : start + chunk.num_tokens] = True
    if not seen.all():
        raise broken_answer(f"the service left out the scalings of position {first + int(np.argmin(seen))}")
    values.flags.writeable = False
    return Scalings(values, experts, first)


def record_of(scalings: Scalings, token_ids: Sequence[int], texts: Sequence[str], prompt_tokens: int) -> ScalingsRecord:
    """Joins scalings with the tokens of prompt and answer.

    The last token of an answer is never run, so it may lack a row.
    """
    rows = scalings.values.shape[0]
    tokens = slice(scalings.first_position, scalings.first_position + rows)
    if len(token_ids[tokens]) != rows:
        raise broken_answer(f"the service sent scalings of {rows} positions for {len(token_ids)} tokens")
    return ScalingsRecord(
        values=scalings.values,
        experts=scalings.experts,
        token_ids=tuple(token_ids[tokens]),
        token_texts=tuple(texts[tokens]),
        prompt_tokens=max(0, min(prompt_tokens - scalings.first_position, rows)),
    )
