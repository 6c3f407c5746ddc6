"""What users rely on: commands, options, configuration keys, JSON keys, columns, routes, Python names.

    python tests/compat/interface.py            print what is missing since commit 1bcff8a (exit code 1), or the counts
    python tests/compat/interface.py --write    write interface.json from the code and from state.tar.xz

The list of commit 1bcff8a is interface.json. Additions are allowed; a name of the list may not disappear. By itself
this program checks what the code shows without running a command; test_interface.py checks JSON documents, files and
the HTTP service as well.
"""

import inspect
import json
import lzma
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

HERE = Path(__file__).resolve().parent
LIST = HERE / "interface.json"
ARCHIVE = HERE / "state.tar.xz"
PROGRAMS = ("audioscore.training",)  # documented as `python -m …`
# Their keys follow from the figures: which resamples were undefined, why there is no interval.
BY_CHANCE = re.compile(r"\.(undefined_resamples|no_interval)(\.|$)")
# Copies of the configuration: its keys may be renamed, as long as the old ones are accepted.
CONFIGURATION = re.compile(r"^\.(training\.settings|config)\.")


def recorded() -> dict[str, Any]:
    """The list of commit 1bcff8a."""
    document: dict[str, Any] = json.loads(LIST.read_text(encoding="utf-8"))
    return document


def commands() -> dict[str, list[str]]:
    """Every command with its options and arguments; an argument by its number, since users do not type its name."""
    import typer

    from audioscore.cli.app import app

    found: dict[str, list[str]] = {}

    def walk(command: Any, name: str) -> None:
        parameters: list[str] = []
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                parameters.append(f"argument {sum(part.startswith('argument') for part in parameters) + 1}")
                parameters += [f"several of {parameters[-1]}"] * (parameter.nargs == -1)
                parameters += [f"{parameters[0]} may be left out"] * (not parameter.required)
            else:
                parameters += [*parameter.opts, *parameter.secondary_opts]
        found[name] = sorted(parameters)
        for part, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {part}")

    walk(typer.main.get_command(app), "audioscore")
    return found


def programs() -> dict[str, list[str]]:
    """Options of the documented `python -m` programs, from their help."""
    found = {}
    for name in PROGRAMS:
        done = subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True, check=False)
        found[name] = sorted(set(re.findall(r"--[a-z][a-z-]*", done.stdout)))
    return found


def keys_of(model: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of a pydantic model's fields, sections too, with their annotations."""
    for name, field in model.model_fields.items():
        yield f"{before}{name}", field.annotation
        for section in sections_in(field.annotation):
            yield from keys_of(section, f"{before}{name}.")


def sections_in(annotation: Any) -> list[Any]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    if get_origin(annotation) is dict:
        return []
    return [section for part in get_args(annotation) for section in sections_in(part)]


def choices_in(annotation: Any) -> list[Any]:
    """The values of every Literal in an annotation; not of a section's own keys."""
    if str(get_origin(annotation)) == "typing.Literal":
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in choices_in(part)]


def configuration() -> dict[str, list[Any]]:
    """Every key that the configuration has now, with its choices where it has some.

    Only for writing the list: whether an old key is still accepted is what `refused_keys` finds.
    """
    from audioscore.config import Config

    return {key: choices_in(annotation) for key, annotation in keys_of(Config)}


def refused_keys(every: Path, listed: Mapping[str, list[Any]]) -> list[str]:
    """Old keys that load_config refuses or ignores, and old choices that it refuses.

    `every` is a configuration that sets all keys: a key is ignored where leaving it out changes nothing.
    """
    import yaml

    from audioscore.config import load_config, parse_config
    from audioscore.errors import AudioscoreError

    try:
        whole = load_config(every)
    except AudioscoreError as fault:
        return [f"configuration {every.name}: {fault}"]
    values = yaml.safe_load(every.read_text(encoding="utf-8"))
    missing = []
    for key in listed:
        changed = without(values, key.split("."))
        if changed == values:
            missing.append(f"configuration {key}: not in {every.name}")
            continue
        if value_at(values, key.split(".")) is None:
            continue  # accepted, and that is all: CAM++ has no layer
        try:
            same = parse_config(changed) == parse_config(values)
        except AudioscoreError:
            continue  # it is needed
        if same:
            missing.append(f"configuration {key}: is ignored")
    for key, choices in listed.items():
        for value in choices:
            try:
                parse_config(smallest_with(key, value))
            except AudioscoreError as fault:
                missing.append(f"configuration {key}={value}: {fault}")
    assert whole is not None
    return missing


def value_at(values: Any, path: list[str]) -> Any:
    """A nested value; of a list of sections, the first one's."""
    for name in path:
        values = (values[0] if isinstance(values, list) else values)[name]
    return values


def without(values: Any, path: list[str]) -> Any:
    """A copy of nested values without one key; lists of sections are entered."""
    if isinstance(values, list):
        return [without(value, path) for value in values]
    if not isinstance(values, dict) or path[0] not in values:
        return values
    if len(path) == 1:
        return {name: value for name, value in values.items() if name != path[0]}
    return {name: without(value, path[1:]) if name == path[0] else value for name, value in values.items()}


def smallest_with(key: str, value: Any) -> dict[str, Any]:
    """A valid configuration that sets one key to one of its choices."""
    values: dict[str, Any] = {"encoders": {"muq": {"source": "/m"}, "campplus": {"source": "/c"}}}
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
    if key == "training.plans":
        section[last] = list(dict.fromkeys(["baseline", "hybrid", value]))
    elif key == "cluster.hours":
        section[last] = {value: 1.0}
    elif key == "validation.severity":
        section[last] = {"no_voice": value}
    elif key == "evaluation.probes.refuse":
        section[last] = [value]
    elif parents[-1:] == ["tolerations"]:
        values["cluster"]["tolerations"] = [{"key": "k", last: value}]
    else:
        section[last] = value
    if value == "trainjob":
        section["trainjob"] = {"exchange": "s3://bucket/x", "image": "r/i@sha256:" + "0" * 64}
    return values


def environment() -> list[str]:
    """Variables that the code reads."""
    import audioscore

    package = Path(audioscore.__file__).parent
    folders = [package, *(package.parent / name for name in ("components", "pipelines"))]
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")]
    found = {name for text in texts for name in re.findall(r"\bAUDIOSCORE_[A-Z_]+\b|MLFLOW_TRACKING_URI", text)}
    return sorted(found - {"AUDIOSCORE_RUN_FOLDER"})  # which a run sets for its own steps


def python_names() -> dict[str, list[str]]:
    """Public classes and functions with their parameters."""
    from typing import get_type_hints

    import audioscore
    from audioscore import config, model
    from audioscore.scoring import checkpoint

    scorer = get_type_hints(checkpoint.load_scorer)["return"]
    result = get_type_hints(scorer.score)["return"]
    row = get_args(get_type_hints(scorer.score_many)["return"])[0]
    found = {
        "audioscore": sorted(name for name in ("load_scorer", "__version__") if hasattr(audioscore, name)),
        "audioscore.load_scorer": parameters(audioscore.load_scorer),
        "audioscore.scoring.checkpoint.load_scorer": parameters(checkpoint.load_scorer),
        "audioscore.config": [name for name in ("Config", "load_config", "parse_config") if hasattr(config, name)],
        "result of Scorer.score": names_of(result),
        "row of Scorer.score_many": names_of(row),
        "audioscore.model.SongEvalGenerator_audio_lora": parameters(model.SongEvalGenerator_audio_lora),
    }
    for name in ("score", "score_many", "decode", "score_batch"):
        found[f"Scorer.{name}"] = parameters(getattr(scorer, name))
    legacy = model.SongEvalGenerator_audio_lora
    for name in sorted(name for name in dir(legacy) if not name.startswith("_")):
        found[f"audioscore.model.SongEvalGenerator_audio_lora.{name}"] = parameters(getattr(legacy, name))
    return found


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def names_of(dataclass: Any) -> list[str]:
    return sorted(dataclass.__dataclass_fields__)


def keys_in(value: Any, before: str = "") -> set[str]:
    """Paths of the keys of a JSON document; `[]` stands for the items of a list, `*` for a singer or a hash."""
    if isinstance(value, list):
        return {path for item in value for path in keys_in(item, f"{before}[]")}
    if not isinstance(value, dict):
        return set()
    found = set()
    for name, below in value.items():
        shown = "*" if re.fullmatch(r"(sha256:)?[0-9a-f]{64}|(.*:)?singer\d+|\d+|.*\.(flac|m4a)", name) else name
        path = f"{before}.{shown}" if before else shown
        if not BY_CHANCE.search(f".{path}") and not CONFIGURATION.search(f".{path}"):
            found |= {path, *keys_in(below, path)}
    return found


def routes(openapi: Mapping[str, Any], metrics: str) -> dict[str, list[str]]:
    """Routes with their parameters and statuses, fields of the answers by route, and metrics of the service."""
    found: dict[str, list[str]] = {}
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            named = [f"parameter {one['name']}" for one in operation.get("parameters", [])]
            body = operation.get("requestBody", {}).get("content", {})
            parts = [f"part {name}" for form in body.values() for name in form.get("schema", {}).get("properties", {})]
            fields = [
                f"{status} {field}"
                for status, answer in operation["responses"].items()
                for content in answer.get("content", {}).values()
                for field in fields_of(content.get("schema", {}), openapi)
            ]
            statuses = [f"status {status}" for status in operation["responses"]]
            found[f"{method.upper()} {path}"] = sorted([*named, *parts, *fields, *statuses])
    found["metrics"] = sorted(set(re.findall(r"^# TYPE (audioscore_\w+)", metrics, re.MULTILINE)))
    return found


def fields_of(schema: Mapping[str, Any], openapi: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Dotted names of a JSON schema's properties."""
    if "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for part in schema.get("anyOf", []):
        yield from fields_of(part, openapi, before)
    if "items" in schema:
        yield from fields_of(schema["items"], openapi, f"{before}[]")
    for name, below in schema.get("properties", {}).items():
        path = f"{before}.{name}" if before else name
        yield path
        yield from fields_of(below, openapi, path)


def missing_in(section: str, listed: Mapping[str, Iterable[str]], live: Mapping[str, Iterable[str]]) -> list[str]:
    """What `live` no longer has."""
    lost = []
    for name, parts in listed.items():
        if name not in live:
            lost.append(f"{section}: {name}")
            continue
        there = set(live[name])
        lost += [f"{section}: {name}: {part}" for part in parts if part not in there]
    return lost


def missing_keys(name: str, document: Any, *, kind: str = "documents") -> list[str]:
    """Keys of a recorded JSON document that a document of today lacks; a list of strings is taken as columns."""
    return missing_in(kind, {name: recorded()[kind][name]}, {name: columns_or_keys(document)})


def columns_or_keys(document: Any) -> list[str]:
    if isinstance(document, list) and all(isinstance(item, str) for item in document):
        return document
    return sorted(keys_in(document))


def missing_from_code(every: Path) -> list[str]:
    """Everything of the list that can be checked without running a command. `every`: see `refused_keys`."""
    listed = recorded()
    return [
        *missing_in("commands", listed["commands"], commands()),
        *missing_in("programs", listed["programs"], programs()),
        *missing_in("python", listed["python"], python_names()),
        *missing_in("environment", {"variables": listed["environment"]}, {"variables": environment()}),
        *refused_keys(every, listed["configuration"]),
    ]


def archived(*names: str) -> dict[str, Any]:
    """JSON files of the archive."""
    with lzma.open(ARCHIVE) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        found = {entry.name: stream_of(tar, entry) for entry in tar if entry.name in names}
    return {name: json.loads(text) for name, text in found.items()}


def stream_of(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(entry)
    assert content is not None
    return content.read()


FILES = {
    "scorer.json of baseline": "scorers/baseline/scorer.json",
    "scorer.json of hybrid": "scorers/hybrid/scorer.json",
    "scorer.json of tuned": "scorers/tuned/scorer.json",
    "splits.json": "data/splits.json",
    "index/train.json": "data/index/train.json",
}
OF_FILES = ("plan.json", "evaluation.json", "predictions.csv")  # in documents.json beside the commands' documents


def write(openapi: Mapping[str, Any], metrics: str) -> None:
    """Write interface.json; `openapi` and `metrics` are a running service's."""
    found = archived("documents.json", *FILES.values())
    documents = found.pop("documents.json")
    del documents["config show"]
    files = {name: columns_or_keys(found[path]) for name, path in FILES.items()}
    files |= {name: columns_or_keys(documents.pop(name)) for name in OF_FILES}
    value = {
        "commands": commands(),
        "programs": programs(),
        "configuration": configuration(),
        "environment": environment(),
        "python": python_names(),
        "documents": {name: columns_or_keys(document) for name, document in documents.items()},
        "files": files,
        "service": routes(openapi, metrics),
        "exit_codes": {
            "0": "done", "1": "a gate refused", "2": "usage or input", "3": "some items failed", "70": "internal error",
            "130": "interrupted", "143": "terminated",
        },
        "registry": {
            "aliases": ["champion", "challenger", "previous"],
            "model input": ["audio"], "model output": ["score", "lo", "hi", "raw", "seconds", "error"],
        },
    }  # fmt: skip
    LIST.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def counts(listed: Mapping[str, Any]) -> str:
    sizes = {name: sum(map(len, parts.values())) for name, parts in listed.items() if isinstance(parts, dict)}
    return (
        f"{len(listed['commands'])} commands with {sizes['commands']} options and arguments, "
        f"{sizes['programs']} options of {len(listed['programs'])} programs, "
        f"{len(listed['configuration'])} configuration keys with {sizes['configuration']} choices, "
        f"{len(listed['environment'])} environment variables, "
        f"{sizes['documents']} keys of {len(listed['documents'])} JSON documents, "
        f"{sizes['files']} keys of {len(listed['files'])} files, "
        f"{sizes['service']} names of {len(listed['service'])} service entries, "
        f"{sizes['python']} Python names, {len(listed['exit_codes'])} exit codes"
    )


def main() -> int:
    import tempfile

    import yaml

    if "--write" in sys.argv:
        openapi, metrics = (Path(name).read_text(encoding="utf-8") for name in sys.argv[-2:])
        write(json.loads(openapi), metrics)
        sys.stdout.write(f"{counts(recorded())}\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        every = Path(folder) / "every.yaml"
        with lzma.open(ARCHIVE) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                if entry.name == "configs/every.yaml":
                    every.write_text(yaml.safe_dump(yaml.safe_load(stream_of(tar, entry))), encoding="utf-8")
        lost = missing_from_code(every)
    sys.stdout.write("".join(f"missing: {one}\n" for one in lost) or f"nothing is missing of {counts(recorded())}\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
