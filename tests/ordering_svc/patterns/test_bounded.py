"""Regular expressions of strangers are run, and stopped."""

from __future__ import annotations

import pytest

from ordering_svc.domain.path_patterns import PathPattern
from ordering_svc.errors import PatternInvalid, PatternTooCostly
from ordering_svc.patterns import bounded
from ordering_svc.patterns.bounded import match_paths
from ordering_svc.patterns.matching_process import answer

PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head")


def test_each_pattern_gets_its_own_answer() -> None:
    whole = PathPattern("target_modules", r".*\.(?!1\.)\d\..*q_proj")
    inside = PathPattern("layers_pattern[0]", "layers", r"(?:^|.*?\.)", r"\.(?P<idx>\d+)\.", is_whole=False)
    assert list(match_paths([whole, inside], PATHS)) == [{PATHS[0]: None}, {PATHS[0]: "0", PATHS[1]: "1"}]
    assert list(match_paths([], PATHS)) == []


def test_an_invalid_pattern_is_named_with_its_position_in_what_was_sent() -> None:
    with pytest.raises(PatternInvalid, match=r"target_modules: '\.\*\(q_proj' .* position 2"):
        match_paths([PathPattern("target_modules", ".*(q_proj")], PATHS)
    with pytest.raises(PatternInvalid) as raised:
        match_paths([PathPattern("a", "x"), PathPattern("b", "la[yers", r"(?:^|.*?\.)", r"\.(?P<idx>\d+)\.")], PATHS)
    assert (raised.value.violations[0].field, raised.value.metadata["position"]) == ("b", "2")


@pytest.mark.parametrize("pattern", ["a{99999999999999999999}", "(?P<idx>a)(?P<idx>b)"])
def test_a_pattern_that_the_compiler_cannot_take_is_invalid(pattern: str) -> None:
    assert "invalid" in answer([(pattern, True)], PATHS)


def test_a_pattern_of_exponential_time_is_stopped_by_the_processs_own_limit() -> None:
    with pytest.raises(PatternTooCostly, match="repetitions inside repetitions"):
        match_paths([PathPattern("target_modules", r"(?:(?:[a-z_.0-9]+)+)+!")], [path * 4 for path in PATHS])


def test_a_process_that_does_not_answer_is_stopped_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CLOCK_SECONDS", 0.0)
    with pytest.raises(PatternTooCostly):
        match_paths([PathPattern("target_modules", "x")], PATHS)
