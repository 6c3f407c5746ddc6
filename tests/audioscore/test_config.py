import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from audioscore.config import CONFIGS, DEMO, SMALL, Config, load_config, parse_config
from audioscore.errors import UsageError

ENCODERS = {"muq": {"source": "OpenMuQ/MuQ-large-msd-iter", "layer": 6}, "campplus": {"source": "iic/campplus"}}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a configuration with the encoders and the given sections."""

    def write(**sections: Any) -> Path:
        path = tmp_path / "configs" / "run.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"encoders": ENCODERS, **sections}, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    assert set(config.training.plans) >= {"baseline", "hybrid"}
    assert parse_config(config.model_dump(mode="json")) == config


def test_the_demo_differs_from_small_only_in_data_registry_and_seed() -> None:
    demo, small = load_config(DEMO).model_dump(), load_config(SMALL).model_dump()
    for section, key in (("data", "uri"), ("registry", "model"), ("split", "seed")):
        assert demo[section].pop(key) != small[section].pop(key)
    assert demo == small


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"trainng": {}}, r"run\.yaml: 1 invalid: trainng: "),
        ({"training": {"epoch": 3}}, r"1 invalid: training\.epoch: .*\bepochs\b"),
        ({"training": {"learning_rates": 3}}, r"1 invalid: .*: .*learning_rate and encoder_learning_rate"),
        ({"encoders": {**ENCODERS, "hubert": {"source": "x/y"}}}, r"encoders\.hubert: "),
        ({"encoders": {"muq": ENCODERS["muq"]}}, r"encoders\.campplus: "),
        ({"split": {"val": 0.6, "test": 0.4}}, r"split: .*val 0\.6 and test 0\.4 "),
        ({"split": {"val": 0.0}}, r"split: .*val 0\.0 and test 0\.2"),
        ({"split": {"same_voice_cosine": 1.0}}, r"split\.same_voice_cosine: .* 1\b"),
        ({"split": {"pseudo_singers": "perhaps"}}, r"split\.pseudo_singers: .*boolean"),
        ({"training": {"plans": ["baseline"]}}, r"training: .*baseline and hybrid.* \['baseline'\]"),
        ({"training": {"plans": ["baseline", "hybrid", "hybrid"]}}, r"training: .* once"),
        ({"training": {"plans": ["baseline", "hybrid", "best"]}}, r"training\.plans\.2: .*'baseline'"),
        ({"training": {"seeds": []}}, r"training\.seeds: .* 1 item"),
        ({"training": {"epochs": 0, "dropout": 2}}, r"2 invalid: training\.dropout: .+, training\.epochs: .+"),
        ({"encoders": None}, r"encoders: "),
        ({"validation": {"severity": {"no_voice": "loud"}}}, r"severity\.no_voice: .*'error', 'warning' or"),
        ({"validation": {"severity": {"no_voice": True}}}, r"severity\.no_voice: "),
        ({"validation": {"min_singers": -1, "max_shift": 0}}, r"2 invalid: validation\.min_singers: .+max_shift: "),
        ({"training": {f"k{index}": 1 for index in range(7)}}, r"7 invalid: .*k0.*k4: [^,]+ 2 more\."),
    ],
)
def test_each_wrong_key_is_named(write: Any, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_config(write(**sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("training.epochs=20", ("training", "epochs"), 20),
        ("training.seeds=[4, 5]", ("training", "seeds"), [4, 5]),
        ("training.learning_rate=1e-4", ("training", "learning_rate"), 1e-4),
        ("split.val=0.25", ("split", "val"), 0.25),
        ("data.uri=s3://bucket/a=b", ("data", "uri"), "s3://bucket/a=b"),
        ("data.uri=null", ("data", "uri"), None),
        ("data.column_map={score: 标记分数}", ("data", "column_map"), {"score": "标记分数"}),
        ("encoders.muq.layer=3", ("encoders", "muq", "layer"), 3),
        (" registry.model = mine", ("registry", "model"), "mine"),
    ],
)
def test_an_override_has_the_type_of_its_yaml(write: Any, override: str, keys: tuple[str, ...], value: Any) -> None:
    found: Any = load_config(write(training={"epochs": 5}, data={"uri": "s3://bucket/old"}), [override]).model_dump()
    for key in keys:
        found = found[key]
    assert found == value
    assert type(found) is type(value)


def test_a_bare_off_is_not_false(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = "validation:\n  severity: {no_voice: off, near_duplicate: 'off', dc_offset: error}\n"
    path.write_text(text + yaml.safe_dump({"encoders": ENCODERS}))
    config = load_config(path, ["validation.severity.few_clips=off"])
    off = dict.fromkeys(("no_voice", "near_duplicate", "few_clips"), "off")
    assert config.validation.severity == {**off, "dc_offset": "error"}
    assert parse_config(config.model_dump(mode="json")) == config


def test_the_last_override_wins_and_other_keys_stay(write: Any) -> None:
    config = load_config(write(training={"epochs": 5, "hidden": 7}), ["training.epochs=6", "training.epochs=7"])
    assert (config.training.epochs, config.training.hidden) == (7, 7)
    assert load_config(write(training=None), ["training.epochs=4"]).training.epochs == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", r"--set training\.epochs: .*a\.b=value"),
        ("=3", r"--set =3: .*a\.b=value"),
        ("encoders.muq.source.id=3", r"--set .*: source "),
        ("training.epochs=[1", r"--set training\.epochs=\[1: .*YAML"),
        ("training.epochs=many", r"training\.epochs: .*integer"),
        ("training.epochs=", r"training\.epochs: .*integer"),
        ("training.epoch=3", r"training\.epoch: "),
        ("training..epochs=3", r"training\.: "),
    ],
)
def test_a_wrong_override_is_named(write: Any, override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config(write(), [override])


def test_folders_are_relative_to_the_file_and_hub_ids_stay(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campplus = {"source": "iic/campplus", "revision": "v1"}
    config = load_config(
        write(data={"uri": "../corpus"}, encoders={"muq": {"source": "./muq", "layer": 2}, "campplus": campplus})
    )
    assert config.data.uri == str(tmp_path / "corpus")
    assert config.encoders.muq.source == str(tmp_path / "configs" / "muq")
    assert config.encoders.muq.layer == 2
    assert (config.encoders.campplus.source, config.encoders.campplus.revision) == ("iic/campplus", "v1")
    assert load_config(write(data={"uri": "s3://bucket/corpus"})).data.uri == "s3://bucket/corpus"
    assert load_config(write(data={"uri": "S3://bucket/Corpus"})).data.uri == "s3://bucket/Corpus"
    assert load_config(SMALL, ["data.uri=GIT+HTTPS://Host/x@V1"]).data.uri == "git+https://Host/x@V1"
    monkeypatch.chdir(tmp_path)  # an override is relative to the working folder
    assert load_config(SMALL, ["data.uri=./mine"]).data.uri == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"run\.yaml: .*demo\.yaml.*small\.yaml"),
        (b"a: [1", r"run\.yaml.* YAML \(.+\)\."),
        (b"\xff\xfe\x00", r"run\.yaml.* YAML"),
        (b"- a\n- b\n", r"run\.yaml.* list.*small\.yaml"),
        (b"just words", r"run\.yaml.* str\b"),
        (b"", r"1 invalid: encoders: "),
    ],
)
def test_a_missing_or_invalid_file_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        load_config(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_ignored(write: Any) -> None:
    path = write(registry={"model": "标"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path).registry.model == "标"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"training": {"head_epochs": 3}}, {"training": {"head_warmup_epochs": 3}}),
        ({"evaluation": {"probes": {"clips": 5}}}, {"evaluation": {"robustness": {"clips": 5}}}),
        ({"training": {"head": "predecessor"}}, {"training": {"head": "legacy"}}),
    ],
)
def test_deprecated_names_are_mapped_with_one_warning(
    write: Any, old: dict[str, Any], new: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    current = load_config(write(**new))
    assert caplog.messages == []
    assert load_config(write(**old)) == current
    assert parse_config({"encoders": ENCODERS, **old}) == parse_config({"encoders": ENCODERS, **new})
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    for words in (old, new):
        ((_, section),) = words.items()
        assert all(str(next(iter(section))) in message for message in caplog.messages)


@pytest.mark.parametrize("shipped", [{}, {"training": {"head_warmup_epochs": 2}}, {"training": {"head_epochs": 2}}])
@pytest.mark.parametrize("name", ["head_epochs", "head_warmup_epochs"])
def test_an_override_may_use_either_name(write: Any, shipped: dict[str, Any], name: str) -> None:
    assert load_config(write(**shipped), [f"training.{name}=7"]).training.head_warmup_epochs == 7


def test_an_override_of_a_deprecated_section_keeps_its_other_keys(write: Any) -> None:
    path = write(evaluation={"robustness": {"tolerance_points": 0.75}})
    for section in ("evaluation.probes", "evaluation.robustness"):
        robustness = load_config(path, [f"{section}.clips=4"]).evaluation.robustness
        assert (robustness.clips, robustness.tolerance_points) == (4, 0.75)


def test_both_names_of_a_key_are_refused(write: Any) -> None:
    both = write(training={"head_epochs": 1, "head_warmup_epochs": 1})
    with pytest.raises(UsageError, match=r"run\.yaml: training\.head_epochs .*training\.head_warmup_epochs"):
        load_config(both)
    old, new = "evaluation.probes", "evaluation.robustness"
    with pytest.raises(UsageError, match=f"--set {old} .*{new}"):
        load_config(write(), [f"{old}.clips=4", f"{new}.clips=5"])


def test_a_configuration_is_frozen() -> None:
    config = Config.model_validate({"encoders": ENCODERS})
    with pytest.raises(ValidationError, match="frozen"):
        config.training.__setattr__("epochs", 3)


JOB = {"exchange": "/mnt/jobs", "image": "a/b:1"}


@pytest.mark.parametrize(
    ("training", "launcher"),
    [
        ({}, "inproc"),
        ({"processes": 4}, "torchrun"),
        ({"launcher": "inproc"}, "inproc"),
        ({"launcher": "torchrun"}, "torchrun"),
        ({"launcher": "trainjob", "trainjob": {**JOB, "exchange": "s3://jobs/x"}}, "trainjob"),
        ({"trainjob": JOB}, "inproc"),
        (
            {"launcher": "trainjob", "processes": 4, "trainjob": {**JOB, "resources_per_node": {"gpu": 4, "cpu": "8"}}},
            "trainjob",
        ),
    ],
)  # fmt: skip
def test_the_default_launcher_depends_on_the_processes(write: Any, training: dict[str, Any], launcher: str) -> None:
    config = load_config(write(training=training))
    assert config.training.resolved_launcher == launcher
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"launcher": "inproc", "processes": 2}, "launcher inproc .*processes 2"),
        ({"launcher": "trainjob"}, r"launcher trainjob .*trainjob\.exchange"),
        (
            {"launcher": "trainjob", "trainjob": {"exchange": "/mnt"}},
            r"launcher trainjob .*training\.trainjob\.image.*cluster\.image",
        ),
        ({"launcher": "trainjob", "trainjob": {**JOB, "resources_per_node": {"nvidia.com/gpu": "4"}}},
         "4 GPUs .*processes is 1"),
        ({"trainjob": {"exchange": "jobs"}}, r"trainjob\.exchange: "),
        ({"trainjob": {"env": {"PET_NNODES": "3"}}}, r"trainjob.* PET_NNODES"),
        ({"trainjob": {"nodes": 3}}, r"trainjob\.nodes: "),
    ],
)  # fmt: skip
def test_an_impossible_launcher_is_refused(write: Any, training: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config(write(training=training))


def test_a_cross_validation_has_one_process(write: Any) -> None:
    settings = {"training": {"processes": 2}, "split": {"folds": 3}}
    with pytest.raises(UsageError, match=r"folds 3.*processes 2"):
        load_config(write(**settings))
    assert load_config(write(training={"processes": 2}, split={"folds": 1})).split.folds == 1


def test_a_trainjob_has_the_image_of_the_cluster_unless_it_names_its_own(write: Any) -> None:
    image = "a/python@sha256:" + "ab" * 32
    training = {"launcher": "trainjob", "trainjob": {"exchange": "/mnt"}}
    assert load_config(write(training=training, cluster={"image": image})).trainjob_image == image
    assert load_config(write(training=training), ["training.trainjob.image=b"]).trainjob_image == "b"


REFUSED = {
    "registry.model": [
        "team/singing",
        "a:b",
        "''",
        "' x'",
        "'x '",
        "a@b",
        "a'b",
        "..",
        "x" * 201,
        "歌" * 67,
        '"a\\nb"',
    ],
    "data.uri": ["s3://Bad Bucket/x", "S3://Bad Bucket/x", "s3://", "s3:///x"],
    "encoders.muq.source": ["no such/!!id", "a/b/c", "''", "x" * 97],
    "containers.image": ["'a b'", "a:b:c", "a@sha256:12"],
    "cluster.namespace": ["Bad", "a_b", "-a", "a.b", "a" * 64],
    "cluster.experiment": ["''", "x" * 129],
    "cluster.service_account": ["A", "a..b"],
    "cluster.pipeline_root": ["root", "s3://AB/x"],
    "cluster.feature_store": ["features", "s3://ab", "s3://My_Bucket/x", "s3://a..b/x"],
    "cluster.artifact_root": ["s3://a_b/x"],
    "cluster.tracking_uri": ["http://", "http:// x", "sqlite:///x"],
    "cluster.accelerator": ["a/b/c", "a b"],
    "cluster.node_selector": ["{a b: c}", "{pool: 'x y'}"],
    "cluster.tolerations": ["[{operator: Equal, value: x}]", "[{key: a, value: x}]"],
    "cluster.shm": ["5gb"],
    "cluster.light.cpu": ["2k", "-1"],
    "cluster.light.memory": ["1.5Gi", "8gb", "'8 Gi'"],
    "cluster.light.memory_limit": ["1Gi"],
    "cluster.heavy.cpu_limit": ["500m"],
    "cluster.secrets": ["[{name: A, env: {k: V}}]", "[{name: a, env: {k k: V}}]", "[{name: a, env: {k: A-B}}]"],
    "cluster.volume": ["{claim: a_b}", "{claim: a, path: '/a:b'}"],
    "cluster.env": ["{1A: x}"],
    "cluster.labels": ["{a: 'x y'}", "{'a/b/c': x}"],
    "cluster.pull_secrets": ["[a/b]"],
    "cluster.hours.train_scorer": ["0"],
    "training.trainjob.exchange": ["s3://A/x", "jobs"],
    "training.trainjob.runtime": ["a_b"],
    "training.trainjob.env": ["{A B: c}"],
    "training.trainjob.resources_per_node": ["{memory: lots}", "{a b: 1}"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_a_value_that_a_later_service_refuses(key: str, value: str) -> None:
    section = ".".join(key.split(".")[:2])
    with pytest.raises(UsageError, match=rf"\b{re.escape(section)}\b"):
        load_config(SMALL, [f"{key}={value}"])


@pytest.mark.parametrize(
    "override",
    [
        "registry.model=歌唱 v2 (KTV)", "registry.model=a.b-c_d", "data.uri=s3://My_Old.Bucket/a b",
        "encoders.muq.source=OpenMuQ/MuQ-large-msd-iter", "encoders.muq.source=~/muq",
        "containers.image=registry.example:5000/team/audioscore-python:v1", "cluster.namespace=kubeflow-user",
        "cluster.pipeline_root=minio://mlpipeline/v2", "cluster.artifact_root=mlflow-artifacts:/x",
        "cluster.accelerator=nvidia.com/gpu", "cluster.node_selector={node.kubernetes.io/instance-type: p4d.24xlarge}",
        "cluster.tolerations=[{operator: Exists}]", "cluster.light.cpu=500m", "cluster.light.memory_limit=16G",
        "cluster.feature_store=/mnt/features", "training.trainjob.resources_per_node={gpu: 4, memory: 64Gi}",
        "cluster.labels={team: ''}",
    ],
)  # fmt: skip
def test_values_that_the_services_accept(override: str) -> None:
    load_config(SMALL, [override])
