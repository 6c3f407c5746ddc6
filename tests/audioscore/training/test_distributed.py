import pytest
import torch

from audioscore.errors import UsageError
from audioscore.training import distributed as processes
from audioscore.training.distributed import count, first_to_fail, in_shares, is_main, start


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_cpu_computes_in_fp32_for_every_precision(precision: str) -> None:
    accelerator = start("cpu", precision)
    assert accelerator.device.type == "cpu"
    assert accelerator.mixed_precision == "no"
    layer = accelerator.prepare(torch.nn.Linear(4, 4))
    assert layer(torch.rand(2, 4)).dtype == torch.float32
    assert accelerator.scaler is None


def test_a_missing_gpu_is_not_replaced_by_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"^device cuda: "):
        start("cuda")
    assert start("auto").device.type == "cpu"


def test_one_process_is_the_main_one_and_does_every_share() -> None:
    shares: list[tuple[int, int]] = []
    in_shares(shares.append, "cpu")
    assert shares == [(0, 1)]
    assert is_main()
    assert count() == 1
    assert first_to_fail()


def test_without_a_rendezvous_only_the_main_process_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ValueError("MASTER_ADDR")

    monkeypatch.setattr(processes, "rendezvous", gone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert first_to_fail() is speaks
