"""The real hub clients download from a server on loopback."""

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
from audioscore.encoders.download import how_to_go_offline, is_cached, pull_encoder
from audioscore.encoders.features import Kind
from audioscore.encoders.muq import load_muq
from audioscore.errors import ModelError
from audioscore.files import sha256_of

MUQ, CAMPPLUS = "somebody/muq", "somebody/voices"
BOTH = [("muq", MUQ), ("campplus", CAMPPLUS)]
CACHED = {"muq": "hf/models--somebody--muq", "campplus": "ms/models/somebody--voices"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Both hubs in one HTTP server, from two folders."""

    def __init__(self, muq: Path, campplus: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = {MUQ: muq, CAMPPLUS: campplus}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.cut_after: int | None = None  # bytes of the weights after which the hub goes down
        self.down = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Log nothing."""

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

    def modelscope(self, repository: str, part: str, query: dict[str, str]) -> None:
        if repository not in self.server.repositories or query.get("Revision", "master") not in ("master", "v1.0.0"):
            self.send_error(404)
        elif part == "revisions":
            names = {"Tags": [{"Revision": "v1.0.0"}], "Branches": [{"Revision": "master"}]}
            self.json({"Code": 200, "Data": {"RevisionMap": names}})
        elif part == "repo":
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
        """Send a file or, for a Range, the rest of it."""
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
    monkeypatch.setattr(modelscope_hub.config, "_default_config", None)  # it caches the address
    # One attempt for each client.
    monkeypatch.setattr(modelscope_hub._legacy_api, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_RETRY_TIMES", 0)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_muq_has_its_commit_files_and_hashes(hub: Hub, tmp_path: Path) -> None:
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
    (note,) = pulled.notes
    assert f"encoders.muq.revision: {COMMIT}" in note
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    pinned = pull_encoder("muq", MUQ, revision=COMMIT, layer=1)
    assert (pinned.asked, pinned.revision, pinned.notes) == (COMMIT, COMMIT, ())
    hub.asked.clear()
    assert pull_encoder("muq", MUQ, revision=COMMIT, layer=1) == pinned
    assert hub.asked == []


def test_campplus_lists_its_tags(hub: Hub, tmp_path: Path) -> None:
    pulled = pull_encoder("campplus", CAMPPLUS)
    assert (pulled.id, pulled.asked, pulled.revision) == (CAMPPLUS, None, "master")
    assert pulled.folder == tmp_path / "ms" / "models" / "somebody--voices" / "snapshots" / "master"
    weights = hub.repositories[CAMPPLUS] / pulled.files[1].name
    assert pulled.sha256 == pulled.files[1].sha256 == sha256_of(weights)
    assert pulled.files[0].name == "configuration.json"
    (note,) = pulled.notes
    assert all(name in note for name in ("master", "v1.0.0", "encoders.campplus.revision"))
    weights = pulled.folder / pulled.files[1].name
    weights.write_bytes(b"\0" * pulled.files[1].bytes)
    assert pull_encoder("campplus", CAMPPLUS) == pulled, "damaged weights are downloaded again"


def test_loading_uses_or_completes_the_pulled_files(hub: Hub) -> None:
    muq = pull_encoder("muq", MUQ, layer=1)
    hub.cut_after = 5_000
    with pytest.raises(ModelError):
        pull_encoder("campplus", CAMPPLUS, revision="v1.0.0")
    with pytest.raises(ModelError, match=rf"^{CAMPPLUS}: .*`audioscore encoders pull`[^\n]*$"):
        load_campplus(CAMPPLUS, revision="v1.0.0")
    hub.down, hub.cut_after = False, None
    loaded = load_campplus(CAMPPLUS, revision="v1.0.0").reference.sha256
    assert loaded == sha256_of(hub.repositories[CAMPPLUS] / "campplus_small.bin")
    campplus = pull_encoder("campplus", CAMPPLUS, revision="v1.0.0")
    assert (campplus.revision, campplus.folder.name, campplus.notes) == ("v1.0.0", "v1.0.0", ())
    hub.down = True
    assert load_muq(MUQ, layer=1).reference.sha256 == muq.sha256
    assert load_campplus(CAMPPLUS, revision="v1.0.0").reference.sha256 == campplus.sha256 == loaded


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_a_cached_encoder_is_not_downloaded_again(
    hub: Hub, kind: Kind, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_cached(kind, source)
    first = pull_encoder(kind, source, layer=1)
    printed = capsys.readouterr()
    assert (printed.out, [bar for bar in ("it/s", "%|") if bar in printed.err]) == ("", [])
    hub.asked.clear()
    assert pull_encoder(kind, source, layer=1) == first
    assert hub.asked
    assert not [asked for asked in hub.asked if "/resolve/" in asked or asked.endswith("/repo")]
    found = first.sha256
    assert pull_encoder(kind, source, layer=1, sha256=found.upper()).sha256 == found
    with pytest.raises(ModelError, match=rf"^{source}: .+{found}.+{'ab' * 32}"):
        pull_encoder(kind, source, layer=1, sha256="ab" * 32)
    hub.down = True
    again = pull_encoder(kind, source, layer=1)
    assert (again.folder, again.revision, again.files) == (first.folder, first.revision, first.files)
    (note,) = again.notes
    assert "503" in note
    hub.asked.clear()
    assert is_cached(kind, source)
    (first.folder / first.files[1].name).unlink()
    assert not is_cached(kind, source)
    assert hub.asked == []


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_a_partial_download_is_resumed(hub: Hub, kind: Kind, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1_000)
    hub.cut_after = 5_000
    with pytest.raises(ModelError, match=rf"^{source}: "):
        pull_encoder(kind, source, layer=1)
    hub.down, hub.cut_after = False, None
    hub.ranges.clear()
    pulled = pull_encoder(kind, source, layer=1)
    weights = pulled.files[1]
    assert hub.ranges == [f"{weights.name} bytes=5000-"]
    assert weights.sha256 == sha256_of(hub.repositories[source] / weights.name)


@pytest.mark.parametrize("part", [b"of another file", b"longer" * 100_000])
def test_wrong_partial_files_are_deleted(hub: Hub, tmp_path: Path, part: bytes) -> None:
    published = hub.repositories[MUQ] / "model.safetensors"
    blobs = tmp_path / "hf" / "models--somebody--muq" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256_of(published)}.part").write_bytes(part)
    assert pull_encoder("muq", MUQ, revision=COMMIT, layer=1).files[1].sha256 == sha256_of(published)
    assert not list(blobs.glob("*.part"))


@pytest.mark.parametrize(("kind", "source"), BOTH)
def test_a_copied_folder_or_cache_works_offline(hub: Hub, kind: Kind, source: str, tmp_path: Path) -> None:
    first, cached = pull_encoder(kind, source, layer=1), tmp_path / CACHED[kind]
    hub.down = True
    folder = Path(shutil.copytree(first.folder, tmp_path / "carried"))
    assert pull_encoder(kind, str(folder), layer=1).sha256 == first.sha256
    shutil.copytree(cached, tmp_path / "disk", symlinks=True)
    shutil.rmtree(cached.parent)
    with pytest.raises(ModelError) as caught:
        pull_encoder(kind, source)
    for part in (how_to_go_offline(kind, source), str(cached), f"encoders.{kind}.source"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.copytree(tmp_path / "disk", cached, symlinks=True, dirs_exist_ok=True)
    assert pull_encoder(kind, source, layer=1).sha256 == first.sha256


@pytest.mark.parametrize(("kind", "source", "variable"), [(*BOTH[0], "HF_ENDPOINT"), (*BOTH[1], "MODELSCOPE_ENDPOINT")])
def test_a_hub_behind_a_dead_proxy(
    hub: Hub, kind: Kind, source: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pull_encoder(kind, source, layer=1)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://hub.invalid")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    expected = rf"HTTP_PROXY \(http://127\.0\.0\.1:1\) and {variable}"
    again = pull_encoder(kind, source, layer=1)
    assert again.files == first.files  # from the cache
    assert re.search("HTTP_PROXY", again.notes[0])
    with pytest.raises(ModelError, match=f"^some/body: .*{expected}") as caught:
        pull_encoder(kind, "some/body")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"^some/body: .*HTTP_PROXY"):
        pull_encoder(kind, "some/body")


@pytest.mark.parametrize(("kind", "source"), BOTH)
@pytest.mark.parametrize("wrong", ["id", "revision"])
def test_an_unknown_id_or_revision_is_refused(hub: Hub, kind: Kind, source: str, wrong: str) -> None:
    asked, revision = ("some/body", None) if wrong == "id" else (source, "v9")
    with pytest.raises(ModelError, match=rf"^{asked}: .*\brevision\b") as caught:
        pull_encoder(kind, asked, revision=revision)
    assert how_to_go_offline(kind, asked) not in str(caught.value)


def test_weights_damaged_in_the_hugging_face_cache_are_refused(hub: Hub) -> None:
    pulled = pull_encoder("muq", MUQ, layer=1)
    blob = (pulled.folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-4] + b"\0\0\0\1")  # as long as it was, and loads
    found = sha256_of(blob)
    with pytest.raises(ModelError, match=rf"^{MUQ}: model\.safetensors .*{found}.*{blob.name}.*{blob}"):
        pull_encoder("muq", MUQ, layer=1)
    blob.unlink()
    assert pull_encoder("muq", MUQ, layer=1) == pulled


@pytest.mark.parametrize(
    ("kind", "source", "name"), [("muq", MUQ, "model.safetensors"), ("campplus", CAMPPLUS, "configuration.json")]
)
def test_invalid_files_are_refused(hub: Hub, kind: Kind, source: str, name: str) -> None:
    (hub.repositories[source] / name).unlink()
    with pytest.raises(ModelError, match=rf"^{source}: .+{re.escape(name)} missing"):
        pull_encoder(kind, source, layer=1)


@pytest.mark.parametrize("kind", ["muq", "campplus"])
def test_a_folder_is_hashed_without_a_request(hub: Hub, tiny_encoders: Path, kind: Kind) -> None:
    folder = tiny_encoders / f"{kind}-small"
    pulled = pull_encoder(kind, str(folder), layer=1)
    assert (pulled.id, pulled.revision, pulled.notes, pulled.folder) == (None, None, (), folder)
    assert [file.sha256 for file in pulled.files] == [sha256_of(folder / file.name) for file in pulled.files]
    assert pulled.sha256 == pull_encoder(kind, {"muq": MUQ, "campplus": CAMPPLUS}[kind], layer=1).sha256
    assert len(json.dumps(pulled.to_json())) > 100
    shutil.rmtree(hub.repositories[MUQ])
    hub.asked.clear()
    pull_encoder(kind, str(folder), layer=1, sha256=pulled.sha256)
    with pytest.raises(ModelError, match=rf"{kind}-small: .*{pulled.sha256}.*{'ab' * 32}"):
        pull_encoder(kind, str(folder), layer=1, sha256="ab" * 32)
    assert hub.asked == []


def test_invalid_weights_folders_and_layers_are_refused(hub: Hub, tiny_encoders: Path, tmp_path: Path) -> None:
    (hub.repositories[MUQ] / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=rf"^{MUQ}: .+model\.safetensors"):
        pull_encoder("muq", MUQ, layer=1)
    with pytest.raises(ModelError, match=r"config\.json and model\.safetensors missing"):
        pull_encoder("muq", str(tmp_path))
    with pytest.raises(ModelError, match=r"layer 6: .*1 to 2\..*encoders\.muq\.layer"):
        pull_encoder("muq", str(tiny_encoders / "muq-small"))
