from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scorer_directory(tiny_encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer folder with an untrained head: it scores, if not well."""
    import torch

    from audioscore.encoders.campplus import load_campplus
    from audioscore.encoders.muq import load_muq
    from audioscore.encoders.reference import Kind
    from audioscore.scoring.calibration import Calibration
    from audioscore.scoring.checkpoint import save_scorer
    from audioscore.scoring.head import ScoreHead
    from audioscore.scoring.network import ScoreNetwork
    from audioscore.scoring.scorer import Description

    folders: dict[Kind, Path] = {"muq": tiny_encoders / "muq-small", "campplus": tiny_encoders / "campplus-small"}
    muq, campplus = load_muq(str(folders["muq"]), layer=2), load_campplus(str(folders["campplus"]))
    shape = {"dims": {"muq": 32, "campplus": 64}, "width": 8, "hidden": 8, "dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        head = ScoreHead(dims={"muq": 32, "campplus": 64}, width=8, hidden=8, dropout=0.0)
    description = Description(
        plan="hybrid",
        seed=5,
        encoders={"muq": muq.reference, "campplus": campplus.reference},
        head=shape,
        calibration=Calibration((-1.0, 1.0), (60.0, 90.0), 5.0),
        seen_clips=(),
        data_digest="0.dir",
        code_revision="unknown",
    )
    folder = tmp_path_factory.mktemp("scorer") / "hybrid"
    save_scorer(ScoreNetwork(head), description, folders, folder)
    return folder
