"""The hubs are stand-ins on loopback that the real clients of both talk to, into caches of their own making."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.muq import load_muq
from audioscore.encoders.pull import how_to_go_offline, is_cached, pull_encoder
from audioscore.encoders.reference import Kind
from audioscore.errors import ModelError
from audioscore.files import sha256_of

MUQ, CAMPPLUS = "somebody/muq", "somebody/voices"
BOTH = [("muq", MUQ), ("campplus", CAMPPLUS)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Both hubs at once: what their clients ask for, over HTTP, from two folders."""

    def __init__(self, muq: Path, campplus: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = {MUQ: muq, CAMPPLUS: campplus}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.cut_after: int | None = None  # bytes of the weights after which the line, and then the hub, goes dead
        self.down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.asked.append(f"{self.command} {path}")
        if self.server.down:
            self.send_error(503)
        elif found := re.fullmatch(r"/api/models/(.+?)/(?:revision|tree)/([^/]+)", path):
            self.hugging_face(*found.groups(), tree="/tree/" in path)
        elif found := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
            self.file(*found.groups())
        elif found := re.fullmatch(r"/api/v1/models/(.+?)/(repo/files|revisions|repo)", path):
            self.modelscope(*found.groups(), query)
        else:
            self.send_error(404)

    def hugging_face(self, repository: str, revision: str, *, tree: bool) -> None:
        if repository not in self.server.repositories:
            self.refuse("RepositoryNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self.refuse("RevisionNotFound")
        elif tree:
            self.json([self.entry(path) for path in self.files(repository)])
        else:
            self.json({"id": repository, "sha": COMMIT, "siblings": []})

    def entry(self, path: Path) -> dict[str, object]:
        size, sha256 = path.stat().st_size, sha256_of(path)
        entry: dict[str, object] = {"type": "file", "path": path.name, "size": size, "oid": COMMIT}
        return entry | ({"lfs": {"oid": sha256, "size": size, "pointerSize": 130}} if path.suffix != ".json" else {})

    def modelscope(self, repository: str, what: str, query: dict[str, str]) -> None:
        if repository not in self.server.repositories or query.get("Revision", "master") not in ("master", "v1.0.0"):
            self.send_error(404)
        elif what == "revisions":
            tags, branches = [{"Revision": "v1.0.0"}], [{"Revision": "master"}]
            self.json({"Code": 200, "Data": {"RevisionMap": {"Tags": tags, "Branches": branches}}})
        elif what == "repo":
            self.file(repository, query["FilePath"])
        else:
            files = [
                {"Path": path.name, "Type": "blob", "Size": path.stat().st_size, "Sha256": sha256_of(path)}
                for path in self.files(repository)
            ]
            self.json({"Code": 200, "Data": {"Files": files}})

    def files(self, repository: str) -> list[Path]:
        return sorted(self.server.repositories[repository].iterdir())

    def file(self, repository: str, name: str) -> None:
        """A file or, where a Range is asked for, the rest of it."""
        path = self.server.repositories[repository] / name
        if not path.is_file():
            self.refuse("EntryNotFound")
            return
        body, start = path.read_bytes(), 0
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            self.server.ranges.append(f"{name} {asked[0]}")
            start = int(asked[1])
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        etag = sha256_of(path) if path.suffix != ".json" else hashlib.sha1(body).hexdigest()
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send(body[start:], self.server.cut_after if path.suffix in (".bin", ".safetensors") else None)

    def json(self, value: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send(json.dumps(value).encode())

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send(b"")

    def send(self, body: bytes, cut_after: int | None = None) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut_after])
            self.server.down |= cut_after is not None


@pytest.fixture
def hub(tiny_encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Hubs that hold the tiny encoders, and empty caches in `tmp_path`."""
    import huggingface_hub.constants as constants
    import modelscope_hub._download
    import modelscope_hub._legacy_api
    import modelscope_hub.config

    copies = {name: tmp_path / "published" / name for name in ("muq-small", "campplus-small")}
    for name, folder in copies.items():
        shutil.copytree(tiny_encoders / name, folder)
        (folder / "README.md").write_text("about")
    server = Hub(*copies.values())
    # What HF_ENDPOINT and HF_HUB_CACHE set in a fresh interpreter.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(modelscope_hub.config, "_default_config", None)  # it remembers the last test's address
    # The clients' patience: one attempt each.
    monkeypatch.setattr(modelscope_hub._legacy_api, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_RETRY_TIMES", 0)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_muq_comes_with_its_commit_files_and_hashes(hub: Hub, tmp_path: Path) -> None:
    pulled = pull_encoder("muq", MUQ, layer=1)
    folder = tmp_path / "hf" / "models--somebody--muq" / "snapshots" / COMMIT
    published = hub.repositories[MUQ]
    assert (pulled.kind, pulled.id, pulled.asked, pulled.revision) == ("muq", MUQ, None, COMMIT)
    assert pulled.folder == folder
    assert [(file.name, file.bytes, file.sha256) for file in pulled.files] == [
        (name, (published / name).stat().st_size, sha256_of(published / name))
        for name in ("config.json", "model.safetensors")
    ]
    assert pulled.sha256 == sha256_of(published / "config.json", published / "model.safetensors")
    assert pulled.licence == "unknown"
    assert pulled.notes == (f"main is a name that may move; pin it: encoders.muq.revision: {COMMIT}",)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_campplus_comes_and_its_tags_are_named(hub: Hub, tmp_path: Path) -> None:
    pulled = pull_encoder("campplus", CAMPPLUS)
    assert (pulled.id, pulled.asked, pulled.revision) == (CAMPPLUS, None, "master")
    assert pulled.folder == tmp_path / "ms" / "models" / "somebody--voices" / "snapshots" / "master"
    weights = hub.repositories[CAMPPLUS] / pulled.files[1].name
    assert pulled.sha256 == pulled.files[1].sha256 == sha256_of(weights)
    assert pulled.files[0].name == "configuration.json"
    assert pulled.notes == ("master is a branch, which may move; pin a tag (v1.0.0) as encoders.campplus.revision",)


def test_what_was_pulled_is_what_training_loads(hub: Hub) -> None:
    muq = pull_encoder("muq", MUQ, layer=1)
    campplus = pull_encoder("campplus", CAMPPLUS, revision="v1.0.0")
    assert (campplus.revision, campplus.folder.name, campplus.notes) == ("v1.0.0", "v1.0.0", ())
    hub.down = True
    assert load_muq(MUQ, layer=1).reference.sha256 == muq.sha256
    assert load_campplus(CAMPPLUS, revision="v1.0.0").reference.sha256 == campplus.sha256


def test_loading_completes_a_download_that_was_cut_off(hub: Hub) -> None:
    hub.cut_after = 5_000
    with pytest.raises(ModelError):
        pull_encoder("campplus", CAMPPLUS, revision="v1.0.0")
    # What is there of it depends on how its files came side by side; test_campplus asks for the whole sentence.
    with pytest.raises(ModelError, match=rf"^{CAMPPLUS}: .*cannot be fetched from ModelScope\. Run") as caught:
        load_campplus(CAMPPLUS, revision="v1.0.0")
    assert "\n" not in str(caught.value)
    hub.down, hub.cut_after = False, None
    weights = hub.repositories[CAMPPLUS] / "campplus_small.bin"
    assert load_campplus(CAMPPLUS, revision="v1.0.0").reference.sha256 == sha256_of(weights)


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_what_is_cached_is_known_without_asking_or_loading(hub: Hub, kind: Kind, source: str) -> None:
    assert not is_cached(kind, source)
    pulled = pull_encoder(kind, source, layer=1)
    hub.asked.clear()
    assert is_cached(kind, source)
    (pulled.folder / pulled.files[1].name).unlink()
    assert not is_cached(kind, source)
    assert hub.asked == []


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_a_pinned_hash_holds_for_a_hub_too(hub: Hub, kind: Kind, source: str) -> None:
    found = pull_encoder(kind, source, layer=1).sha256
    assert pull_encoder(kind, source, layer=1, sha256=found.upper()).sha256 == found
    with pytest.raises(ModelError, match=rf"^{source} is in the cache, but .+: SHA-256 {found}, but {'ab' * 32} is pi"):
        pull_encoder(kind, source, layer=1, sha256="ab" * 32)


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_a_second_pull_fetches_no_file_and_says_the_same(hub: Hub, kind: Kind, source: str) -> None:
    first = pull_encoder(kind, source, layer=1)
    hub.asked.clear()
    assert pull_encoder(kind, source, layer=1) == first
    assert hub.asked
    assert not [asked for asked in hub.asked if "/resolve/" in asked or asked.endswith("/repo")]


def test_a_pinned_commit_that_is_here_asks_the_hub_nothing(hub: Hub) -> None:
    first = pull_encoder("muq", MUQ, revision=COMMIT, layer=1)
    assert (first.asked, first.revision, first.notes) == (COMMIT, COMMIT, ())
    hub.asked.clear()
    assert pull_encoder("muq", MUQ, revision=COMMIT, layer=1) == first
    assert hub.asked == []


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_a_download_that_was_cut_off_is_resumed(
    hub: Hub, kind: Kind, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000)  # what it writes at a time: 10 MB
    hub.cut_after = 5_000
    with pytest.raises(ModelError, match=rf"^{source}: cannot be fetched from .+ \(.+\)\. Offline, pull it"):
        pull_encoder(kind, source, layer=1)
    hub.down, hub.cut_after = False, None
    hub.ranges.clear()
    pulled = pull_encoder(kind, source, layer=1)
    weights = pulled.files[1]
    assert hub.ranges == [f"{weights.name} bytes=5000-"]
    assert weights.sha256 == sha256_of(hub.repositories[source] / weights.name)


@pytest.mark.parametrize("part", [b"of another file", b"longer" * 100_000])
def test_parts_that_do_not_join_to_what_was_published_are_thrown_away(hub: Hub, tmp_path: Path, part: bytes) -> None:
    published = hub.repositories[MUQ] / "model.safetensors"
    blobs = tmp_path / "hf" / "models--somebody--muq" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256_of(published)}.part").write_bytes(part)
    assert pull_encoder("muq", MUQ, revision=COMMIT, layer=1).files[1].sha256 == sha256_of(published)
    assert not list(blobs.glob("*.part"))


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_where_the_hub_cannot_be_reached_its_cache_is_used_and_that_is_said(hub: Hub, kind: Kind, source: str) -> None:
    first = pull_encoder(kind, source, layer=1)
    hub.down = True
    again = pull_encoder(kind, source, layer=1)
    assert (again.folder, again.revision, again.files) == (first.folder, first.revision, first.files)
    assert len(again.notes) == 1
    assert re.fullmatch(r"the hub could not be asked \(.*503.*\): this is what its cache holds", again.notes[0])


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_nothing_here_and_no_hub_says_what_to_do(hub: Hub, kind: Kind, source: str, tmp_path: Path) -> None:
    hub.down = True
    with pytest.raises(ModelError, match=r"Offline, pull it on another machine and copy") as caught:
        pull_encoder(kind, source)
    assert how_to_go_offline(kind, source) in str(caught.value)
    assert "\n" not in str(caught.value)
    place = {"muq": "hf/models--somebody--muq", "campplus": "ms/models/somebody--voices"}[kind]
    assert f"cache folder to {tmp_path / place}, or" in str(caught.value)
    assert f"give its path as encoders.{kind}.source." in str(caught.value)


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_the_sentence_on_going_offline_is_true(hub: Hub, kind: Kind, source: str, tmp_path: Path) -> None:
    """What it says to copy, copied to a second machine's cache, or to a folder, is an encoder there."""
    first = pull_encoder(kind, source, layer=1)
    hub.down = True
    folder = Path(shutil.copytree(first.folder, tmp_path / "carried"))
    assert pull_encoder(kind, str(folder), layer=1).sha256 == first.sha256
    place = tmp_path / {"muq": "hf/models--somebody--muq", "campplus": "ms/models/somebody--voices"}[kind]
    shutil.copytree(place, tmp_path / "disk", symlinks=True)
    shutil.rmtree(place.parent)
    shutil.copytree(tmp_path / "disk", place, symlinks=True)
    assert pull_encoder(kind, source, layer=1).sha256 == first.sha256


@pytest.mark.parametrize(("kind", "source"), BOTH)
@pytest.mark.parametrize("wrong", ["id", "revision"])
def test_an_unknown_id_or_revision_is_refused_without_talk_of_networks(
    hub: Hub, kind: Kind, source: str, wrong: str
) -> None:
    asked, revision = ("some/body", None) if wrong == "id" else (source, "v9")
    with pytest.raises(
        ModelError, match=rf"^{asked}: cannot be fetched from .+\. Check its id, its revision and your access\.$"
    ):
        pull_encoder(kind, asked, revision=revision)


def test_weights_damaged_in_hugging_faces_cache_are_found(hub: Hub) -> None:
    pulled = pull_encoder("muq", MUQ, layer=1)
    blob = (pulled.folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-4] + b"\0\0\0\1")  # as long as it was, and loads
    with pytest.raises(
        ModelError, match=rf"^{MUQ}: model\.safetensors is damaged, its SHA-256 is [0-9a-f]{{64}}"
    ) as caught:
        pull_encoder("muq", MUQ, layer=1)
    assert f"{blob.name} was published. Delete {blob} and pull again." in str(caught.value)
    blob.unlink()
    assert pull_encoder("muq", MUQ, layer=1) == pulled


def test_weights_damaged_in_modelscopes_cache_are_fetched_again(hub: Hub) -> None:
    pulled = pull_encoder("campplus", CAMPPLUS)
    weights = pulled.folder / pulled.files[1].name
    weights.write_bytes(b"\0" * pulled.files[1].bytes)
    assert pull_encoder("campplus", CAMPPLUS) == pulled


@pytest.mark.parametrize(
    ("kind", "source", "name"),
    [("muq", MUQ, "model.safetensors"), ("campplus", CAMPPLUS, "configuration.json")],
)
def test_a_repository_without_the_files_is_incomplete(hub: Hub, kind: Kind, source: str, name: str) -> None:
    (hub.repositories[source] / name).unlink()
    with pytest.raises(ModelError, match=rf"^{source}: .+ is incomplete, {re.escape(name)} missing\. Pull again"):
        pull_encoder(kind, source, layer=1)


def test_weights_that_do_not_load_are_said_to_be_in_the_cache(hub: Hub) -> None:
    (hub.repositories[MUQ] / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=rf"^{MUQ} is in the cache, but cannot be used: .+ is damaged"):
        pull_encoder("muq", MUQ, layer=1)


@pytest.mark.parametrize("kind", ["muq", "campplus"])
def test_a_folder_is_loaded_and_hashed_and_no_hub_asked(hub: Hub, tiny_encoders: Path, kind: Kind) -> None:
    folder = tiny_encoders / f"{kind}-small"
    pulled = pull_encoder(kind, str(folder), layer=1)
    assert (pulled.id, pulled.revision, pulled.notes, pulled.folder) == (None, None, (), folder)
    assert [file.sha256 for file in pulled.files] == [sha256_of(folder / file.name) for file in pulled.files]
    assert pulled.sha256 == pull_encoder(kind, {"muq": MUQ, "campplus": CAMPPLUS}[kind], layer=1).sha256
    assert len(json.dumps(pulled.to_json())) > 100
    shutil.rmtree(hub.repositories[MUQ])
    hub.asked.clear()
    pull_encoder(kind, str(folder), layer=1, sha256=pulled.sha256)
    assert hub.asked == []


def test_a_hash_other_than_the_pinned_one_is_refused(tiny_encoders: Path) -> None:
    folder = tiny_encoders / "campplus-small"
    found = load_campplus(str(folder)).reference.sha256
    with pytest.raises(
        ModelError, match=rf"campplus-small: SHA-256 {found}, but {'ab' * 32} is pinned\. Correct the pin"
    ):
        pull_encoder("campplus", str(folder), sha256="ab" * 32)


def test_a_broken_folder_and_a_layer_too_many_are_refused(tiny_encoders: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^\S+: not a MuQ folder, config\.json and model\.safetensors missing"):
        pull_encoder("muq", str(tmp_path))
    with pytest.raises(ModelError, match=r"^MuQ layer 6: this model has layers 1 to 2\. Set encoders\.muq\.layer\.$"):
        pull_encoder("muq", str(tiny_encoders / "muq-small"))


def test_standard_output_and_bars_stay_out_of_the_way(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    pull_encoder("muq", MUQ, layer=1)
    pull_encoder("campplus", CAMPPLUS)
    said = capsys.readouterr()
    assert said.out == ""
    assert "it/s" not in said.err
    assert "%|" not in said.err
