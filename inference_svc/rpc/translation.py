"""Errors of the parts that know nothing of requests, in the terms of a request."""

from __future__ import annotations

from inference_svc.errors import (
    AdapterMalformed,
    AdapterUnsupported,
    HubUnavailable,
    InferenceError,
    InvalidRequest,
    LimitReached,
    PathNotAllowed,
    SourceChanged,
    SourceNotFound,
)
from inference_svc.tokenization import errors as tokenization
from inference_svc.weights import errors as weights

OF_WEIGHTS: dict[type[weights.WeightsError], type[InferenceError]] = {
    weights.FileChanged: SourceChanged,  # before MalformedFile, of which it is a kind
    weights.MalformedFile: AdapterMalformed,
    weights.UnsupportedFile: AdapterUnsupported,
    weights.FileMissing: SourceNotFound,
    weights.HubUnavailable: HubUnavailable,
    weights.PathNotAllowed: PathNotAllowed,
    weights.TooLarge: LimitReached,
    weights.NoRoom: LimitReached,
    weights.NotEnoughMemory: LimitReached,
}


def as_inference_error(error: Exception) -> InferenceError | None:
    """What the caller is told about an error of the files or the tokenizer; None for any other error."""
    if isinstance(error, tokenization.ChatTemplateError):
        return InvalidRequest("prompt.chat", str(error))
    if isinstance(error, tokenization.TokenizationError):
        return InvalidRequest("prompt", str(error))
    if isinstance(error, weights.WeightsError):
        ours = next((ours for kind, ours in OF_WEIGHTS.items() if isinstance(error, kind)), None)
        if ours is not None:
            return ours(str(error), path=error.path)
    return None
