"""Who may import whom: the architecture, held."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRANSPORT = {"grpc", "google", "protovalidate", "loramux"}
RULES: list[tuple[str, set[str]]] = [
    ("inference_svc/scheduling", {"torch", "grpc"}),
    ("inference_svc/kv_cache/blocks.py", {"torch", "grpc"}),
    ("inference_svc/kv_cache/block_table.py", {"torch", "grpc"}),
    ("inference_svc/models", TRANSPORT),
    ("inference_svc/layers", TRANSPORT),
    ("inference_svc/adapters", TRANSPORT),
    ("inference_svc/kernels", TRANSPORT),
    ("inference_svc/engine", TRANSPORT),
    ("inference_svc/rpc", {"torch"}),
    ("inference_svc", {"ordering_svc", "transformers", "peft"}),
    ("ordering_svc", {"inference_svc", "torch", "transformers", "peft"}),
    ("clients", {"inference_svc", "ordering_svc", "torch"}),
]


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a module imports, whether at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def modules(place: str) -> list[Path]:
    path = ROOT / place
    found = [path] if path.suffix else sorted(path.rglob("*.py"))
    assert found, f"{place} holds no modules"
    return found


@pytest.mark.parametrize(("place", "forbidden"), RULES, ids=[place for place, _ in RULES])
def test_no_module_imports_what_its_place_forbids(place: str, forbidden: set[str]) -> None:
    broken = {
        str(path.relative_to(ROOT)): sorted(bad) for path in modules(place) if (bad := imported(path) & forbidden)
    }
    assert not broken


def test_the_domain_of_orderings_needs_the_standard_library_alone() -> None:
    import sys

    allowed = set(sys.stdlib_module_names) | {"ordering_svc"}
    for path in modules("ordering_svc/domain"):
        assert not imported(path) - allowed, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ordering_svc"):
                assert node.module.startswith(("ordering_svc.domain", "ordering_svc.errors")), (path, node.module)


def test_the_library_of_hubs_is_imported_when_a_hub_is_asked() -> None:
    # It takes a fifth of a second, which a model on this machine need not wait for.
    hub = {path.stem for path in modules("inference_svc/weights") if path.stem.startswith("hub")} - {"hub_reference"}
    slow = {"huggingface_hub", *(f"inference_svc.weights.{name}" for name in hub)}
    for path in modules("inference_svc"):
        if path.stem not in hub:
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not slow & {*names, *(name.split(".")[0] for name in names)}, path


def test_triton_is_imported_where_its_kernels_are_chosen() -> None:
    # A plain install on a CPU has none.
    allowed = {"inference_svc.kernels.triton.availability"}
    kernels = set(modules("inference_svc/kernels/triton")) - {ROOT / "inference_svc/kernels/triton/availability.py"}
    for path in set(modules("inference_svc")) - kernels:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bad = {name for name in names if name.startswith(("triton", "inference_svc.kernels.triton"))} - allowed
            assert not bad, path
