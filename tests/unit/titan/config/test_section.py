"""What the ``[lighthouse]`` section means for each layer."""

import sys

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.titan.config.section import Lighthouse, layer_configs


def test_overrides_apply_in_order_and_dense_layers_win():
    section = Lighthouse(
        enable=True,
        topk=16,
        stratum=8,
        dense_layers=[0],
        layer_overrides=["0-2:topk=8", "2:num_levels=2 scorer=dilated topk=32"],
    )
    configs = layer_configs(section, 4, 256)
    base = LighthouseConfig(topk=16, stratum=8)
    assert configs[0] is None
    assert configs[1] == LighthouseConfig(topk=8, stratum=8)
    assert configs[2] == LighthouseConfig(topk=32, stratum=8, num_levels=2, scorer="dilated")
    assert configs[3] == base


def test_overrides_are_checked_together():
    section = Lighthouse(
        enable=True, topk=16, stratum=8, layer_overrides=["1:num_levels=4", "1:topk=8"]
    )
    # 4 levels of 512 tokens have 8 coarsest entries: too few for 16, enough for 8.
    assert layer_configs(section, 2, 512)[1] == LighthouseConfig(4, 4, 8, stratum=8)


def test_window_layers_beside_others():
    section = Lighthouse(
        enable=True,
        topk=16,
        stratum=8,
        window=64,
        dense_layers=[0],
        window_layers=[1, 3],
        layer_overrides=["2-3:window=128 topk=8"],
    )
    configs = layer_configs(section, 5, 256)
    assert configs == [
        None,
        WindowConfig(64),
        LighthouseConfig(topk=8, stratum=8),
        WindowConfig(128),
        LighthouseConfig(topk=16, stratum=8),
    ]


def test_windows_alone_ask_nothing_of_lighthouse():
    section = Lighthouse(enable=True, topk=1536, window=8, window_layers=[0, 1])
    assert layer_configs(section, 2, 30) == [WindowConfig(8)] * 2


def test_the_config_module_can_be_merged():
    # torchtitan merges configuration classes by their run-time annotations.
    assert not any(isinstance(f.type, str) for f in Lighthouse.__dataclass_fields__.values())
    assert "torchtitan" not in sys.modules["lighthouse.titan.config.section"].__dict__
