"""Train LoRA's presets."""

import pytest
from nulltext.nodes import train_lora, tuning_inputs


def test_presets_are_read_where_a_widget_says_nothing():
    way = train_lora.PRESETS["kohya"]
    same = {"steps": 0, "lr": 0.0, "batch": 0, "rank": 0, "alpha": 0.0, "dropout": 0.0, "prior_weight": -1.0}
    asked = dict(same, targets=tuning_inputs.PRESET, text=tuning_inputs.PRESET)
    assert train_lora.chosen(way, **asked) == way
    other = train_lora.chosen(way, **(asked | {"lr": 1e-3, "prior_weight": 0.0, "text": train_lora.LEAVE}))
    assert (other.lr, other.prior_weight, other.text_lr) == (1e-3, 0.0, 0.0)
    assert train_lora.chosen(way, **(asked | {"lr": 1e-3})).text_lr == pytest.approx(1e-3)
