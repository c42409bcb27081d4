"""The trainer says once, with the remedy, when the window never acts and when the signal vanishes."""

import logging

import pytest
from conftest import build_model, sample_rows
from test_trainer import SGD, build


def warnings_of(caplog, word):
    return [record.message for record in caplog.records if word in record.message]


def test_window_never_acts(tmp_path, caplog):
    """At the first log, however few samples it covers."""
    build(tmp_path, group_size=256, per_device_train_batch_size=2, **SGD | {"max_steps": 1}).train()
    (message,) = warnings_of(caplog, "group_size=256")
    assert "Only 0% of the samples" in message
    assert "Lower `group_size`" in message


@pytest.mark.parametrize(
    "options", [{"group_size": 8}, {"group_size": 256, "sample_weighting": False}, {"loss_type": "nll"}]
)
def test_no_warning_where_the_window_acts_or_is_not_used(options, tmp_path, caplog):
    build(tmp_path, per_device_train_batch_size=8, **SGD | {"max_steps": 4} | options).train()
    assert not warnings_of(caplog, "long enough")


@pytest.mark.parametrize("loss_type", ["bft", "dft"])
def test_vanishing_token_weight(loss_type, tmp_path, caplog):
    # As initialised, the model gives every token the probability 1/259.
    model = build_model(initializer_range=1e-3)
    build(tmp_path, model=model, loss_type=loss_type, **SGD | {"max_steps": 4, "learning_rate": 1e-6}).train()
    (message,) = warnings_of(caplog, "mean token weight is 0.00")
    assert "token_weight_power=0.25" in message


def test_vanishing_token_weight_in_a_run_shorter_than_logging_steps(tmp_path, caplog):
    model = build_model(initializer_range=1e-3)
    run = build(tmp_path, model=model, **SGD | {"max_steps": 3, "learning_rate": 1e-6, "logging_steps": 500})
    run.train()
    assert len(warnings_of(caplog, "mean token weight is 0.00")) == 1
    assert run.state.log_history[-1]["nll"] == pytest.approx(5.56, abs=0.03)  # ln 259


def test_rising_nll(tmp_path, caplog):
    build(tmp_path, per_device_train_batch_size=8, **SGD | {"max_steps": 10, "learning_rate": 30.0}).train()
    (message,) = warnings_of(caplog, "above its start")
    assert "token_weight_power=0.25" in message


def test_falling_nll_is_no_reason_to_warn(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = sample_rows(8)
    options = SGD | {"max_steps": 10, "learning_rate": 0.1, "token_weighting": False}
    run = build(tmp_path, rows, per_device_train_batch_size=8, **options)
    run.train()
    nll = [entry["nll"] for entry in run.state.log_history if "nll" in entry]
    assert nll[-1] < nll[1] < nll[0]
    assert not warnings_of(caplog, "above its start")
