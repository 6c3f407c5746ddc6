from pathlib import Path

import pytest

LIVELY_DEPTH = 4


@pytest.fixture(scope="session")
def lively_muq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MuQ of four layers in which every part that could be forgotten does something.

    Norms have weights and BatchNorm has statistics of their own, and every dropout of the published configuration
    drops: left in train mode, no two forward passes would agree.
    """
    import torch

    from audioscore.training.pretrain import build_muq, muq_config, save_muq

    target = tmp_path_factory.mktemp("lively-muq") / "weights"
    config = muq_config(dim=32, depth=LIVELY_DEPTH, conv_dim=8, codebook=64)
    dropouts = ("activation_dropout", "hidden_dropout", "attention_dropout", "conformer_conv_dropout")
    config["w2v2_config"] |= dict.fromkeys(dropouts, 0.3) | {"layerdrop": 0.3}
    with torch.random.fork_rng(devices=[]):
        model = build_muq(config, seed=3)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    save_muq(model, config, target)
    return target
