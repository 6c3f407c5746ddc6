import re

from audioscore.data.clips import Clip
from audioscore.data.split.report import ExcludedClip, report_splits

TARGETS = {"train": 0.6, "val": 0.2, "test": 0.2}
CLIPS = [Clip(f"{number}.m4a", 50.0 + number, f"s{number}", f"song{number}", "ktv") for number in range(10)]
EVEN = {clip.audio_file: split for clip, split in zip(CLIPS, ["train"] * 6 + ["val"] * 2 + ["test"] * 2, strict=True)}


def test_wanted_and_actual_shares_are_reported() -> None:
    report = report_splits(CLIPS, EVEN, TARGETS, groups=10, new_groups=10)
    assert report.warnings == []
    counts = report.to_json()["splits"]
    shares = [(count["clips"], count["share"], count["wanted"]) for count in counts.values()]
    assert shares == [(6, 0.6, 0.6), (2, 0.2, 0.2), (2, 0.2, 0.2)]
    assert (counts["test"]["lowest"], counts["test"]["highest"], counts["test"]["unscored"]) == (58.0, 59.0, 0)


def test_a_split_that_is_too_small_is_a_warning() -> None:
    report = report_splits(CLIPS, EVEN | {"9.m4a": "train"}, TARGETS, groups=10, new_groups=10)
    [warning] = report.warnings
    assert re.search(r"\btest\b.*1 of 10\b.*\b10%.*\b20%", warning)


def test_excluded_clips_are_listed_and_not_counted() -> None:
    out = ExcludedClip("0.m4a", "train", "REASON")
    of = {name: split for name, split in EVEN.items() if name != "0.m4a"}
    report = report_splits(CLIPS, of, TARGETS, groups=10, new_groups=0, left_out=[out])
    assert sum(count.clips for count in report.splits.values()) == 9
    [warning] = report.warnings
    assert re.search(r"1 of 10\b.*0\.m4a.*\btrain\b.*REASON", warning)


def test_two_spellings_of_a_singer_count_once_and_unscored_clips_separately() -> None:
    clips = [Clip("a", 60.0, "Li"), Clip("b", None, "\uff2c\uff29"), Clip("c", 70.0), Clip("d", 80.0)]
    of = {"a": "train", "b": "train", "c": "val", "d": "test"}
    report = report_splits(
        clips, of, {"train": 0.5, "val": 0.25, "test": 0.25}, groups=3, new_groups=3, grouped_by_voice=1
    )
    assert (report.splits["train"].singers, report.splits["train"].unscored, report.unknown_singers) == (1, 1, 2)
    assert re.search(r"1 of 4\b.*singer", report.warnings[0])
