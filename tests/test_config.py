import copy
import json
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from conftest import build_config
from trl import TrlParser

from bft_trl import BFTConfig


def test_defaults_are_the_paper(tmp_path):
    config = build_config(tmp_path, group_size=256)
    assert config.objective() == {
        "loss_type": "bft",
        "bft_version": "v1",
        "token_weighting": True,
        "sample_weighting": True,
        "group_size": 256,
        "confidence_mean": "geometric",
        "confidence_gamma": 1.0,
        "token_weight_power": 1.0,
        "min_token_weight": 0.0,
        "anchor_coef": 0.0,
    }
    assert (config.weight_column, config.metrics_by_column, config.log_samples) == (None, None, False)


def test_best_metric_acts_only_with_load_best_model_at_end(tmp_path):
    assert build_config(tmp_path).metric_for_best_model is None
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    config = build_config(tmp_path, **best)
    assert (config.metric_for_best_model, config.greater_is_better) == ("eval_nll", False)
    assert build_config(tmp_path, metric_for_best_model="eval_loss", **best).metric_for_best_model == "eval_loss"


def test_numbers_of_numpy_can_be_saved(tmp_path):
    """A checkpoint has them as JSON."""
    numbers = {name: np.float32(0.5) for name in ("token_weight_power", "min_token_weight", "anchor_coef")}
    objective = build_config(tmp_path, group_size=np.int64(3), confidence_gamma=np.float32(2), **numbers).objective()
    assert json.loads(json.dumps(objective)) == objective


def test_the_token_stays_in_copies_and_not_in_files(tmp_path):
    config = build_config(tmp_path, hub_token="hf_secret")
    for_a_worker = ForkingPickler.loads(ForkingPickler.dumps(config))  # as multiprocessing sends it to a process
    copies = [copy.copy(config), copy.deepcopy(config), for_a_worker]
    assert [found.hub_token for found in copies] == ["hf_secret"] * 3
    torch.save(config, tmp_path / "training_args.bin")
    assert b"hf_secret" not in (tmp_path / "training_args.bin").read_bytes()
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).hub_token is None


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("eval_nll", False), ("eval_nll/go", False), ("eval_loss", False), ("eval_mean_token_accuracy", True)],
)
def test_direction_of_the_best_metric(metric, greater, tmp_path):
    assert build_config(tmp_path, metric_for_best_model=metric).greater_is_better is greater
    assert (
        build_config(tmp_path, metric_for_best_model=metric, greater_is_better=not greater).greater_is_better
        != greater
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "btf"}, ["loss_type='btf'", "'bft', 'nll', 'dft', 'eaft'"]),
        ({"bft_version": "v2"}, ["bft_version='v2'", "'v1', 'v3'"]),
        ({"confidence_mean": "harmonic"}, ["confidence_mean='harmonic'", "'geometric'"]),
        ({"group_size": 0}, ["group_size=0", "1 or more"]),
        ({"group_size": -1}, ["group_size=-1", "1 or more"]),
        ({"group_size": "256a"}, ["group_size='256a'", "whole number"]),
        ({"group_size": 2.5}, ["group_size=2.5", "whole number"]),
        ({"group_size": True}, ["group_size=True", "whole number"]),
        ({"group_size": 10**30}, ["group_size=1000", "whole number"]),
        ({"token_weighting": "False"}, ["token_weighting='False'", "True or False"]),
        ({"confidence_gamma": 0}, ["confidence_gamma=0", "above 0"]),
        ({"confidence_gamma": float("nan")}, ["confidence_gamma=nan", "above 0"]),
        ({"token_weight_power": -0.5}, ["token_weight_power=-0.5", "0 or more"]),
        ({"token_weight_power": float("nan")}, ["token_weight_power=nan", "0 or more"]),
        ({"anchor_coef": -0.1}, ["anchor_coef=-0.1", "0 or more"]),
        ({"anchor_coef": float("nan")}, ["anchor_coef=nan", "0 or more"]),
        ({"anchor_coef": 0.1, "lm_head_backend": "trl"}, ["anchor_coef=0.1", "'auto'"]),
        ({"loss_type": "eaft", "lm_head_backend": "trl"}, ["loss_type='eaft'", "'auto'"]),
        ({"min_token_weight": 1.5}, ["min_token_weight=1.5", "[0, 1]"]),
        ({"bft_version": "v3", "confidence_mean": "arithmetic"}, ["confidence_mean='arithmetic'", "v1"]),
        ({"bft_version": "v3", "confidence_gamma": 2.0}, ["confidence_gamma=2.0", "v1"]),
        ({"label_smoothing_factor": 0.1}, ["label_smoothing_factor=0.1", "Set it to 0"]),
        ({"packing": True, "packing_strategy": "wrapped"}, ["packing_strategy='wrapped'", "bfd"]),
    ],
    ids=str,
)
def test_bad_values_name_the_argument_and_the_remedy(options, words, tmp_path):
    with pytest.raises(ValueError, match="`") as error:
        build_config(tmp_path, **options)
    for word in words:
        assert word in str(error.value)


def test_fields_are_flags_and_yaml_keys(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("loss_type: dft\ngroup_size: 64\nuse_cpu: true\nbf16: false\n")
    (config,) = TrlParser(BFTConfig).parse_args_and_config(
        ["--config", str(file), "--output_dir", str(tmp_path), "--group_size", "32"]
    )
    assert (config.loss_type, config.group_size) == ("dft", 32)


def test_misspelt_flag_value_raises_in_the_parser(tmp_path, capsys):
    parser = TrlParser(BFTConfig)
    with pytest.raises(SystemExit):
        parser.parse_args_and_config(["--output_dir", str(tmp_path), "--group_size", "256a"])
    assert "--group-size: invalid int value: '256a'" in capsys.readouterr().err


def test_help_shows_every_field_once(capsys):
    with pytest.raises(SystemExit):
        TrlParser(BFTConfig).parse_args_and_config(["--help"])
    text = capsys.readouterr().out
    for name in ("--loss_type", "--bft_version", "--group_size", "--min_token_weight"):
        assert text.count(f"\n  {name}") == 1
