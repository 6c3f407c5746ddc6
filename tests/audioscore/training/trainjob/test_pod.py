from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.errors import DataError
from audioscore.files import read_json
from audioscore.scoring.trained_plan import read_trained
from audioscore.training.__main__ import parse, train
from audioscore.training.recipe import read_ground
from audioscore.training.trainjob import pod as trainjob_parcel
from audioscore.training.trainjob.exchange import Exchange
from audioscore.training.trainjob.pod import Asked, pack, unpack

TRAINJOB = {"exchange": "/unused", "image": "x"}


def packed(ground: Any, exchange: Exchange, plan: Any, **changed: Any) -> Any:
    """What a pod would unpack of a packed training."""
    config = ground.config(seeds=[1], epochs=1, launcher="trainjob", trainjob=TRAINJOB, **changed)
    asked = Asked(plan, ground.index, ground.features, config, "d.dir", "abc", "cpu")
    read = read_ground(plan, ground.index, ground.features, config.training, "d.dir", "abc", "cpu")
    pack(exchange, "job", asked, read)
    return unpack(exchange, "job", Path("/unused"))


@pytest.mark.parametrize(
    ("plan", "changed"),
    [
        ("campplus_only", {}),
        ("hybrid", {"tuning": "lora", "lora": {"rank": 4, "alpha": 6}, "adversary": {"weight": 0.5}}),
    ],
)
def test_a_parcel_holds_all_that_training_reads(ground: Any, tmp_path: Path, plan: str, changed: Any) -> None:
    """The same figures as from where the parcel was made."""
    options, processes, out = packed(ground, Exchange(str(tmp_path)), plan, **changed)
    assert (processes, out) == (1, tmp_path / "job" / "work")
    parsed = parse(options)
    assert (parsed.plan, parsed.data_digest, parsed.code_revision, parsed.device) == ([plan], "d.dir", "abc", "cpu")
    assert all(path.is_relative_to(tmp_path) for path in (parsed.config, parsed.index, parsed.features, parsed.out))
    assert read_json(parsed.features / "extraction.json")["store"] == f"{tmp_path}/features"
    train(parsed)
    judge = ground.train(plan, tmp_path / "judge", seeds=[1], epochs=1, **changed)
    found = read_trained(out)
    assert (found.curves[1][0]["train_loss"], found.validation) == (judge.curves[1][0]["train_loss"], judge.validation)


def test_what_training_starts_from_travels_with_it(ground: Any, tmp_path: Path) -> None:
    start = ground.train("baseline", tmp_path / "start", seeds=[1], epochs=1).scorer_folder()
    options, _, out = packed(ground, Exchange(str(tmp_path / "exchange")), "baseline", init=f"warm:{start}")
    taken = Path(parse(options).init.removeprefix("warm:"))
    assert (taken.name, taken.is_relative_to(tmp_path / "exchange")) == (start.name, True)
    train(parse(options))
    described = read_json(read_trained(out).scorer_folder() / "scorer.json")
    assert described["training"]["init"] == f"warm: {start.name}", "and no path"


def test_a_parcel_of_which_a_file_changed_is_refused(ground: Any, tmp_path: Path) -> None:
    packed(ground, Exchange(str(tmp_path)), "campplus_only")
    (tmp_path / "job" / "input" / "config.json").write_text("{}")
    with pytest.raises(DataError, match=rf"^{tmp_path}/job/input/config\.json "):
        unpack(Exchange(str(tmp_path)), "job", Path("/unused"))


def test_features_in_a_bucket_stay_there(ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = SimpleNamespace(is_bucket=True, uri="s3://songs/features")
    monkeypatch.setattr(trainjob_parcel, "FeatureStore", lambda uri: bucket)
    options, _, _ = packed(ground, Exchange(str(tmp_path)), "campplus_only")
    assert read_json(parse(options).features / "extraction.json")["store"] == bucket.uri
    assert not (tmp_path / "features").exists()
