import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from audioscore.errors import ModelError
from audioscore.training import loop
from audioscore.training.checkpoint import FitProgress, read_checkpoint, restore, trained_state, write_checkpoint
from audioscore.training.data import fit_statistics
from audioscore.training.distributed import start
from audioscore.training.loop import Fit, HeadWarmup, fit_network

DAMAGED = r"fit\.checkpoint: .*damaged"


class Killed(Exception):
    """Ends a fit as a kill does."""


class Killer:
    """Ends a fit after a number of steps; `first` is the step at which the fit started."""

    def __init__(self, steps: int) -> None:
        self.steps, self.first = steps, -1

    def on_start(self, step: int, steps: int) -> None:
        self.first = step

    def on_step(self, step: int) -> None:
        if step == self.steps:
            raise Killed

    def on_epoch(self, entry: dict[str, float]) -> None:
        pass

    def on_end(self, error: BaseException | None) -> None:
        pass


def fit(
    toys: Any, checkpoint: Path | None, *, resume: bool = False, killer: Killer | None = None,
    warmup: HeadWarmup | None = None, **changed: Any,
) -> Fit:  # fmt: skip
    """A fit with dropout and adversary; 64 clips in batches of 16, 5 epochs: 20 steps, a checkpoint every 3."""
    network = toys.network(dropout=0.3)
    fit_statistics(network, toys.train.features)
    train, adversary = toys.adversary(toys.train, network.head.representation_dim)
    settings = {"epochs": 5, "adversary_weight": 0.5, "schedule": "cosine", "warmup_share": 0.1, **changed}
    return fit_network(
        network, train, toys.val, toys.settings(**settings), seed=1, adversary=adversary, checkpoint=checkpoint,
        identity="this", resume=resume, callbacks=[] if killer is None else [killer], device="cpu",
        warmup=warmup,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(toys: Any) -> Fit:
    return fit(toys, None)


def figures(found: Fit) -> list[dict[str, float]]:
    """The curve without times."""
    clocks = ("seconds", "clips_per_second")
    return [{name: value for name, value in entry.items() if name not in clocks} for entry in found.curve]


def assert_same(found: Fit, wanted: Fit) -> None:
    assert figures(found) == figures(wanted)
    assert found.best_epoch == wanted.best_epoch
    weights = wanted.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.network.state_dict().items())


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(toys: Any, uninterrupted: Fit, tmp_path: Path, seed: int) -> None:
    generator, checkpoint = random.Random(seed), tmp_path / "fit.checkpoint"
    kills, resume = sorted(generator.sample(range(1, 20), 3)), False
    for kill in kills:
        killer = Killer(kill)
        with pytest.raises(Killed):
            fit(toys, checkpoint, resume=resume, killer=killer)
        assert killer.first <= kill
        resume = True
    last = Killer(-1)
    assert_same(fit(toys, checkpoint, resume=True, killer=last), uninterrupted)
    # A checkpoint every 3 steps and after every epoch of 4; the kill comes before the one of its own step.
    assert last.first == max((step for step in range(kills[-1]) if step % 3 == 0 or step % 4 == 0), default=0)


def test_a_finished_fit_is_only_read(toys: Any, uninterrupted: Fit, tmp_path: Path) -> None:
    first = fit(toys, tmp_path / "fit.checkpoint")
    assert_same(first, uninterrupted)
    again = Killer(1)
    assert_same(fit(toys, tmp_path / "fit.checkpoint", resume=True, killer=again), uninterrupted)
    assert again.first == 20


@pytest.mark.parametrize("resume", [True, False])
def test_without_a_checkpoint_or_without_resume_a_fit_starts_anew(
    toys: Any, uninterrupted: Fit, tmp_path: Path, resume: bool
) -> None:
    if not resume:
        (tmp_path / "fit.checkpoint").write_bytes(b"not a checkpoint")
    killer = Killer(-1)
    assert_same(fit(toys, tmp_path / "fit.checkpoint", resume=resume, killer=killer), uninterrupted)
    assert killer.first == 0


@pytest.fixture
def scalers(monkeypatch: pytest.MonkeyPatch) -> list[torch.amp.GradScaler]:
    """Run fits on the CPU with a gradient scaler, as fp16 on a GPU has it; collects the scaler of each fit.

    It starts so high that gradients overflow and steps are skipped, and doubles every other step.
    """
    made: list[torch.amp.GradScaler] = []

    def with_scaler(device: str, precision: str) -> Accelerator:
        accelerator = start(device, precision)
        monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=2)
        made.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(loop, "start", with_scaler)
    return made


@pytest.mark.parametrize("kill", [2, 5, 11, 18])
def test_the_fp16_scale_is_resumed(toys: Any, scalers: list[torch.amp.GradScaler], tmp_path: Path, kill: int) -> None:
    wanted = fit(toys, None)
    with pytest.raises(Killed):
        fit(toys, tmp_path / "fit.checkpoint", killer=Killer(kill), checkpoint_steps=1)
    assert_same(fit(toys, tmp_path / "fit.checkpoint", resume=True), wanted)
    expected, stopped, found = (scaler.state_dict() for scaler in scalers)
    assert found == expected
    assert stopped["scale"] < 2.0**24, "some steps were skipped before the kill"


@pytest.mark.parametrize("kill", [3, 8, 13])
def test_an_fp16_warmup_resumes(toys: Any, scalers: list[torch.amp.GradScaler], tmp_path: Path, kill: int) -> None:
    warmup = HeadWarmup(toys.train, toys.val, 2)  # 8 steps
    wanted = fit(toys, None, warmup=warmup)
    assert len(scalers) == 2
    with pytest.raises(Killed):
        fit(toys, tmp_path / "fit.checkpoint", killer=Killer(kill), checkpoint_steps=1, warmup=warmup)
    assert_same(fit(toys, tmp_path / "fit.checkpoint", resume=True, warmup=warmup), wanted)


def test_an_fp16_fit_does_not_resume_without_its_scale(saved: tuple[Path, Any, Any]) -> None:
    path, network, optimizer = saved  # as a CPU writes it
    state = torch.load(path, weights_only=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for written in (state, {name: value for name, value in state.items() if name != "scaler"}):  # and earlier versions
        torch.save(written, path)
        with pytest.raises(ModelError, match=r"fit\.checkpoint: .*fp16"):
            read_checkpoint(path, "this", network, optimizer, torch.amp.GradScaler("cpu"))
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert read_checkpoint(path, "this", network, optimizer) is not None, "fp32 and bf16 have none"


def test_a_scale_that_is_not_needed_is_ignored(saved: tuple[Path, Any, Any]) -> None:
    path, network, optimizer = saved
    write_checkpoint(path, "this", network, optimizer, FitProgress(step=7), torch.amp.GradScaler("cpu"))
    found = read_checkpoint(path, "this", network, optimizer)
    assert found is not None
    assert found.step == 7


@pytest.fixture
def saved(toys: Any, tmp_path: Path) -> tuple[Path, Any, Any]:
    """A checkpoint, the network it is of, and its optimizer."""
    network = toys.network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    progress = FitProgress(epoch=2, batch=1, step=5, losses=[0.5], best_state=trained_state(network))
    write_checkpoint(tmp_path / "fit.checkpoint", "this", network, optimizer, progress)
    return tmp_path / "fit.checkpoint", network, optimizer


def test_a_written_checkpoint_is_read_back_and_is_the_only_file(saved: tuple[Path, Any, Any], toys: Any) -> None:
    path, network, _ = saved
    other = toys.network(seed=9)
    found = read_checkpoint(path, "this", other, torch.optim.AdamW(other.parameters()))
    assert found is not None
    assert (found.epoch, found.batch, found.step, found.losses) == (2, 1, 5, [0.5])
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in other.state_dict().items())
    assert [one.name for one in path.parent.iterdir()] == ["fit.checkpoint"]


def test_a_checkpoint_of_another_fit_is_refused(saved: tuple[Path, Any, Any]) -> None:
    path, network, optimizer = saved
    with pytest.raises(ModelError, match=r"fit\.checkpoint: .*data, settings, seed"):
        read_checkpoint(path, "that", network, optimizer)


def test_a_checkpoint_of_another_network_is_refused(saved: tuple[Path, Any, Any], toys: Any) -> None:
    path, _, _ = saved
    other = toys.network(kinds=("muq",))
    with pytest.raises(ModelError, match="another network"):
        read_checkpoint(path, "this", other, torch.optim.AdamW(other.parameters()))
    with pytest.raises(ModelError, match="another network"):
        restore(other, {})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_checkpoint_cut_short_is_refused(saved: tuple[Path, Any, Any], share: float) -> None:
    path, network, optimizer = saved
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=DAMAGED):
        read_checkpoint(path, "this", network, optimizer)


@pytest.mark.parametrize("content", [[1], {"identity": "this"}, {"identity": "this", "progress": {"epochs": 1}}])
def test_a_file_that_is_no_checkpoint_is_refused(saved: tuple[Path, Any, Any], content: Any) -> None:
    path, network, optimizer = saved
    torch.save(content, path)
    with pytest.raises(ModelError, match=DAMAGED):
        read_checkpoint(path, "this", network, optimizer)


def test_a_pickle_that_runs_code_is_refused(saved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path, network, optimizer = saved
    torch.save({"identity": Trap()}, path)
    with pytest.raises(ModelError, match=DAMAGED):
        read_checkpoint(path, "this", network, optimizer)
    assert not (tmp_path / "sprung").exists()


def test_a_kill_while_writing_changes_nothing(saved: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, network, optimizer = saved
    before = path.read_bytes()

    def half(_: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, "this", network, optimizer, FitProgress())
    assert path.read_bytes() == before
