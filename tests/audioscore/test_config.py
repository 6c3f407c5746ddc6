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
    """Writes a configuration of the encoders and the given sections."""

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
    assert parse_config(config.model_dump(mode="json")) == config, "the resolved copy is a configuration too"


def test_the_demo_differs_from_small_only_in_where_it_lives() -> None:
    demo, small = load_config(DEMO).model_dump(), load_config(SMALL).model_dump()
    differing = {
        f"{name}.{key}" if isinstance(demo[name], dict) else name
        for name in demo
        for key in (demo[name] if isinstance(demo[name], dict) else [name])
        if (demo[name][key] if isinstance(demo[name], dict) else demo[name])
        != (small[name][key] if isinstance(small[name], dict) else small[name])
    }
    assert differing == {"data.uri", "registry.model", "split.seed"}
    assert (demo["registry"]["model"], small["registry"]["model"]) == ("audioscore-demo", "audioscore")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"trainng": {}}, r"run\.yaml: 1 wrong: trainng: there is no such key"),
        (
            {"training": {"epoch": 3}},
            r"1 wrong: training\.epoch: there is no such key; there are epochs and head_epochs\.",
        ),
        ({"encoders": {**ENCODERS, "hubert": {"source": "x/y"}}}, r"encoders\.hubert: there is no such key\."),
        ({"encoders": {"muq": ENCODERS["muq"]}}, r"encoders\.campplus: must be there"),
        ({"split": {"val": 0.6, "test": 0.4}}, r"split: .*val 0\.6 and test 0\.4 must be above 0 and leave a share"),
        ({"split": {"val": 0.0}}, r"split: .*val 0\.0 and test 0\.2"),
        ({"split": {"same_voice_cosine": 1.0}}, r"split\.same_voice_cosine: Input should be less than 1"),
        ({"split": {"pseudo_singers": "perhaps"}}, r"split\.pseudo_singers: Input should be a valid boolean"),
        ({"training": {"plans": ["baseline"]}}, r"training: .*must hold baseline and hybrid.*got \['baseline'\]"),
        ({"training": {"plans": ["baseline", "hybrid", "hybrid"]}}, "each plan once"),
        ({"training": {"plans": ["baseline", "hybrid", "best"]}}, r"training\.plans\.2: Input should be 'baseline'"),
        ({"training": {"seeds": []}}, r"training\.seeds: List should have at least 1 item"),
        ({"training": {"epochs": 0, "dropout": 2}}, r"2 wrong: training\.dropout: .+, training\.epochs: .+"),
        ({"encoders": None}, r"encoders: "),
        (
            {"validation": {"severity": {"no_voice": "loud"}}},
            r"severity\.no_voice: Input should be 'error', 'warning' or",
        ),
        ({"validation": {"severity": {"no_voice": True}}}, r"severity\.no_voice: Input should be"),
        ({"validation": {"min_singers": -1, "max_shift": 0}}, r"2 wrong: validation\.min_singers: .+max_shift: "),
    ],
)
def test_each_key_at_fault_is_named(write: Any, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_config(write(**sections))
    assert "\n" not in str(caught.value)


def test_many_faults_are_counted_and_five_are_shown(write: Any) -> None:
    with pytest.raises(UsageError, match=r"7 wrong: .*k0.*k4: [^,]+ and 2 more\.$"):
        load_config(write(training={f"k{index}": 1 for index in range(7)}))


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
        ("registry.model=try", ("registry", "model"), "try"),
    ],
)
def test_an_override_has_the_type_its_yaml_says(write: Any, override: str, keys: tuple[str, ...], value: Any) -> None:
    found: Any = load_config(write(training={"epochs": 5}, data={"uri": "s3://bucket/old"}), [override]).model_dump()
    for key in keys:
        found = found[key]
    assert found == value
    assert type(found) is type(value)


def test_a_bare_off_is_off_although_yaml_reads_it_as_false(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = "validation:\n  severity: {no_voice: off, near_duplicate: 'off', dc_offset: error}\n"
    path.write_text(text + yaml.safe_dump({"encoders": ENCODERS}))
    config = load_config(path, ["validation.severity.few_clips=off"])
    assert config.validation.severity == {
        "no_voice": "off",
        "near_duplicate": "off",
        "dc_offset": "error",
        "few_clips": "off",
    }
    assert parse_config(config.model_dump(mode="json")) == config


def test_the_last_override_wins_and_the_rest_stays(write: Any) -> None:
    config = load_config(write(training={"epochs": 5, "hidden": 7}), ["training.epochs=6", "training.epochs=7"])
    assert (config.training.epochs, config.training.hidden) == (7, 7)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", r"--set training\.epochs: expected a\.b=value, for instance"),
        ("=3", r"--set =3: expected a\.b=value"),
        ("encoders.muq.source.id=3", r"--set .*: source is a value, not a section"),
        ("training.epochs=[1", r"--set training\.epochs=\[1: the value is not valid YAML"),
        ("training.epochs=many", r"training\.epochs: Input should be a valid integer"),
        ("training.epochs=", r"training\.epochs: Input should be a valid integer"),
        ("training.epoch=3", r"training\.epoch: there is no such key"),
        ("training..epochs=3", r"training\.: there is no such key"),
    ],
)
def test_a_bad_override_is_refused_naming_it(write: Any, override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config(write(), [override])


def test_an_override_reaches_a_section_that_the_file_leaves_empty(write: Any) -> None:
    assert load_config(write(training=None), ["training.epochs=4"]).training.epochs == 4


def test_folders_are_relative_to_the_file_and_hub_ids_stay(write: Any, tmp_path: Path) -> None:
    path = write(
        data={"uri": "../corpus"},
        encoders={"muq": {"source": "./muq", "layer": 2}, "campplus": {"source": "iic/campplus", "revision": "v1"}},
    )
    config = load_config(path)
    assert config.data.uri == str(tmp_path / "corpus")
    assert config.encoders.muq.source == str(tmp_path / "configs" / "muq")
    assert config.encoders.muq.layer == 2
    assert (config.encoders.campplus.source, config.encoders.campplus.revision) == ("iic/campplus", "v1")
    assert load_config(write(data={"uri": "s3://bucket/corpus"})).data.uri == "s3://bucket/corpus"


def test_a_missing_file_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.yaml: no such configuration\. Shipped ones: .*demo\.yaml.*small\.yaml"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", r"not valid YAML \(.+\)\."),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a\n- b\n", r"holds a list, not sections of keys\. See small\.yaml"),
        (b"just words", r"holds a str, not sections"),
        (b"", r"1 wrong: encoders: must be there"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        load_config(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_fault(write: Any) -> None:
    path = write(registry={"model": "标"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path).registry.model == "标"


def test_a_configuration_does_not_change_once_read() -> None:
    config = Config.model_validate({"encoders": ENCODERS})
    with pytest.raises(ValidationError, match="frozen"):
        config.training.__setattr__("epochs", 3)


def test_a_folder_in_an_override_is_relative_to_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(SMALL, ["data.uri=./mine"]).data.uri == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("training", "launcher"),
    [
        ({}, "inproc"),
        ({"processes": 4}, "torchrun"),
        ({"launcher": "inproc"}, "inproc"),
        ({"launcher": "torchrun"}, "torchrun"),
        ({"launcher": "trainjob", "trainjob": {"exchange": "s3://jobs/x", "image": "a/b:1"}}, "trainjob"),
        ({"trainjob": {"exchange": "/mnt/jobs", "image": "a/b:1"}}, "inproc"),
        (
            {
                "launcher": "trainjob", "processes": 4,
                "trainjob": {"exchange": "/mnt/jobs", "image": "a/b:1", "resources_per_node": {"gpu": 4, "cpu": "8"}},
            },
            "trainjob",
        ),
    ],
)  # fmt: skip
def test_a_launcher_follows_from_the_processes_unless_one_is_named(
    write: Any, training: dict[str, Any], launcher: str
) -> None:
    config = load_config(write(training=training))
    assert config.training.started_by == launcher
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"launcher": "inproc", "processes": 2}, "launcher inproc is one process; got processes 2. Leave one of them"),
        ({"launcher": "trainjob"}, r"launcher trainjob needs trainjob\.exchange: a bucket or folder that step and"),
        (
            {"launcher": "trainjob", "trainjob": {"exchange": "/mnt"}},
            r"file: .*launcher trainjob needs training\.trainjob\.image, or cluster\.image\.",
        ),
        (
            {
                "launcher": "trainjob",
                "trainjob": {"exchange": "/mnt", "image": "a", "resources_per_node": {"nvidia.com/gpu": "4"}},
            },
            "a node has 4 GPUs and processes is 1: each process needs its own",
        ),
        ({"trainjob": {"exchange": "jobs"}}, r"trainjob\.exchange: String should match pattern"),
        ({"trainjob": {"env": {"PET_NNODES": "3"}}}, "env must not set PET_NNODES: the cluster tells torchrun its"),
        ({"trainjob": {"nodes": 3}}, r"trainjob\.nodes: there is no such key"),
    ],
)  # fmt: skip
def test_a_launcher_that_cannot_is_refused(write: Any, training: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config(write(training=training))


def test_a_trainjob_runs_the_clusters_image_unless_it_names_its_own(write: Any) -> None:
    image = "a/python@sha256:" + "ab" * 32
    training = {"launcher": "trainjob", "trainjob": {"exchange": "/mnt"}}
    assert load_config(write(training=training, cluster={"image": image})).trainjob_image == image
    assert load_config(write(training=training), ["training.trainjob.image=b"]).trainjob_image == "b"
